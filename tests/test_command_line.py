"""Arguments -> config, without anything heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunelab.command_line import Command, read_command, read_or_answer

ROOT = Path(__file__).resolve().parents[1]
BASE = """\
model: {net: {name: resnet20, num_classes: 10}, optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}
data: {name: cifar10, batch_size: 128}
pruning: {criterion: {name: synflow, rounds: 50}, density: 0.1, rounds: 9}
trainer: {max_epochs: 3}
"""


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return str(path)


def config_of(*argv: str) -> dict[str, Any]:
    return read_command(list(argv)).config


def test_options_in_both_forms(base: str) -> None:
    config = config_of("--config", base, "--data.batch_size", "64", "--trainer.limit_val_batches=-1")
    assert config["data"]["init_args"]["batch_size"] == "64"  # typed by prunelab.cli
    assert config["trainer"] == {"max_epochs": 3, "limit_val_batches": "-1"}


def test_command_is_named_after_its_first_config(base: str) -> None:
    assert read_command(["-c", base, "--config", "fast_cpu"]).name == "base"
    assert read_command(["--pruning.density", ".1"]).name == "custom"


def test_configs_overlay_in_order_and_the_command_line_comes_last(base: str, tmp_path: Path) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("trainer: {max_epochs: 5}\ndata: {batch_size: 32}\npruning: {compression_ratio: 4}\n")
    config = config_of("--trainer.max_epochs", "7", "--config", base, "--config", str(layer))
    assert config["trainer"]["max_epochs"] == "7"
    assert config["data"]["init_args"]["batch_size"] == 32
    assert "density" not in config["pruning"]
    assert config["pruning"]["compression_ratio"] == 4


def test_density_on_the_command_line_replaces_any_spelling(base: str) -> None:
    pruning = config_of("--config", base, "--pruning.sparsity", "0.75")["pruning"]
    assert (pruning["sparsity"], pruning.get("density")) == ("0.75", None)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_criterion_and_its_knobs_in_any_order(base: str, order: slice) -> None:
    words = ["--pruning.criterion=snip", "--pruning.criterion.signed=true", "--pruning.rounds=4"][order]
    pruning = config_of("--config", base, *words)["pruning"]
    assert pruning["criterion"]["init_args"] == {"signed": "true"}
    assert pruning["rounds"] == "4"


def test_another_criterion_on_the_command_line_drops_knobs_and_rounds(base: str) -> None:
    pruning = config_of("--config", base, "--pruning.criterion", "snip")["pruning"]
    assert pruning["criterion"] == {"class_path": "prunelab.pruning.criteria.Snip", "init_args": {}}
    assert "rounds" not in pruning


def test_a_knob_alone_joins_the_configs_criterion(base: str) -> None:
    pruning = config_of("--config", base, "--pruning.criterion.input", "mean_abs")["pruning"]
    assert pruning["criterion"]["init_args"] == {"rounds": 50, "input": "mean_abs"}


def test_data_and_networks_by_name_or_import_path(base: str) -> None:
    config = config_of(
        *("--config", base, "--data", "tiny_imagenet", "--data.val_size", "0"),
        *("--model.net", "torchvision.models.resnet18", "--model.optimizer", "adamw"),
    )
    assert config["data"] == {"class_path": "prunelab.data.tiny_imagenet", "init_args": {"val_size": "0"}}
    assert config["model"]["net"]["class_path"] == "torchvision.models.resnet18"
    assert config["model"]["optimizer"] == {"class_path": "torch.optim.AdamW", "init_args": {}}


def test_values_that_are_lists_mappings_or_null(base: str) -> None:
    config = config_of(
        *("--config", base, "--pruning.exclude", "['*.fc.*', conv1]", "--model.lr_scheduler", "null"),
        *("--pruning.criterion", "{name: grasp, temperature: 100}"),
    )
    assert config["pruning"]["exclude"] == ["*.fc.*", "conv1"]
    assert config["model"]["lr_scheduler"] is None
    assert config["pruning"]["criterion"]["init_args"] == {"temperature": 100}


def test_class_and_key_of_any_other_slot(base: str) -> None:
    config = config_of("--config", base, "--trainer.logger.save_dir", "x", "--trainer.logger", "CSVLogger")
    assert config["trainer"]["logger"] == {"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}


def test_keys_of_appended_classes_go_to_the_one_before(base: str) -> None:
    words = ["--trainer.callbacks+=A", "--trainer.callbacks.x=1", "--trainer.callbacks+=B", "--trainer.callbacks.x=2"]
    assert config_of("--config", base, *words)["trainer"]["callbacks"] == [
        {"class_path": "A", "init_args": {"x": "1"}},
        {"class_path": "B", "init_args": {"x": "2"}},
    ]


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["--config", "quickstart", "--help"]])
def test_help_lists_configs_names_and_examples(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert read_or_answer(argv) == 0
    text = capsys.readouterr().out
    assert text.count("  python train.py --config ") == 3
    for path in (ROOT / "configs").glob("*.yaml"):
        claim = path.read_text().splitlines()[0].removeprefix("# ")
        assert any(path.name in line and claim in line for line in text.splitlines())
    assert "iterative_snip" in text
    assert "tiny_imagenet" in text


def test_actions() -> None:
    assert read_or_answer(["--help_all"]) == Command("help_all", "", {})
    command = read_or_answer(["--config", "quickstart", "--print_config"])
    assert isinstance(command, Command)
    assert command.action == "print_config"


def test_help_and_simple_mistakes_import_no_torch(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("model: {net: [1,\n")
    (tmp_path / "base.yaml").write_text(BASE)
    script = f"""
import runpy, sys
for words, code in [
    ("", 0), ("--help", 0), ("--config nope.yaml", 2), ("--config broken.yaml", 2),
    ("--config base.yaml --pruning.density 2", 2), ("--config base.yaml --model.net resnet19", 2),
]:
    sys.argv = ["train.py", *words.split()]
    try:
        runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
    except SystemExit as leaving:
        assert leaving.code == code, (words, leaving.code)
heavy = {{"torch", "pytorch_lightning", "torchvision", "jsonargparse", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
