"""Arguments -> config, without anything heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunelab.command_line import Command, read_command, read_or_answer
from prunelab.names import CommandError

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
    assert text.count("  python train.py --config ") == 4
    for path in (ROOT / "configs").glob("*.yaml"):
        claim = path.read_text().splitlines()[0].removeprefix("# ")
        assert any(path.name in line and claim in line for line in text.splitlines())
    assert "iterative_snip" in text
    assert "tiny_imagenet" in text
    assert "--fresh" in text


def test_actions() -> None:
    assert read_or_answer(["--help_all"]) == Command("help_all", "", {})
    command = read_or_answer(["--config", "quickstart", "--print_config"])
    assert isinstance(command, Command)
    assert command.action == "print_config"


def test_fresh_is_a_flag_in_any_place(base: str) -> None:
    for words in (["--fresh", "--config", base], ["--config", base, "--fresh", "--data.batch_size", "64"]):
        command = read_command(words)
        assert command.fresh
        assert "fresh" not in command.config
    assert not read_command(["--config", base]).fresh
    assert read_command(["--config", base, "--fresh", "--print_config"]).action == "print_config"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fresh", "true"], "unexpected 'true': options are written --key value"),
        (["--fresh=true"], "unexpected '--fresh=true': --fresh takes no value"),
        (["--fresh="], "unexpected '--fresh=': --fresh takes no value"),
        (["--data.batch_size", "--fresh"], "--data.batch_size needs a value"),
    ],
)
def test_fresh_takes_no_value(words: list[str], message: str, base: str) -> None:
    with pytest.raises(CommandError) as refused:
        read_command(["--config", base, *words])
    assert str(refused.value) == message


def test_densities_of_levels_on_the_command_line_replace_the_configs(base: str) -> None:
    config = config_of("--config", base, "--tickets.densities", "[0.5, 0.2]", "--tickets.layer_rates", '{"fc*": 0.5}')
    assert config["tickets"] == {"densities": [0.5, 0.2], "layer_rates": {"fc*": 0.5}}
    assert "density" not in config["pruning"]


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_options_do_not_drop_each_other(base: str, order: slice) -> None:
    words = ["--pruning.masks_from=runs/some", "--pruning.criterion=snip", "--tickets.levels=3"][order]
    config = config_of("--config", base, *words)
    assert config["pruning"]["criterion"]["class_path"] == "prunelab.pruning.criteria.Snip"
    assert config["tickets"] == {"levels": "3"}
    assert config["pruning"].keys() == {"criterion", "masks_from"}


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


GRID = """\
grid:
  model.optimizer.lr: [0.1, 0.01]
  control: [reinit, null]
  seed_everything: [0, 1]
"""


@pytest.fixture
def grid(base: str) -> str:
    path = Path(base).with_name("grid.yaml")
    path.write_text(BASE + GRID)
    return str(path)


def test_cells_are_every_combination_and_the_ticket_comes_before_its_control(grid: str) -> None:
    command = read_command(["--config", grid])
    assert [tuple(cell.values.values()) for cell in command.cells] == [
        *((0.1, None, 0), (0.1, None, 1), (0.1, "reinit", 0), (0.1, "reinit", 1)),
        *((0.01, None, 0), (0.01, None, 1), (0.01, "reinit", 0), (0.01, "reinit", 1)),
    ]
    assert command.cells[3].title == "cell 4 of 8: model.optimizer.lr 0.1, control reinit, seed_everything 1"
    assert command.cells[4].title == "cell 5 of 8: model.optimizer.lr 0.01, control null, seed_everything 0"
    assert "grid" not in command.config
    assert command.name == "grid"


def test_axes_stay_in_the_order_typed(base: str) -> None:
    words = ["--grid.model.optimizer.lr", "[1]", "--grid.seed_everything", "[0]", "--grid.pruning.density", "[0.5]"]
    order = ["model.optimizer.lr", "seed_everything", "pruning.density"]
    assert list(read_command(["--config", base, *words]).grid) == order


def test_a_cell_is_what_its_values_make_when_typed(grid: str) -> None:
    cell = read_command(["--config", grid, "--data.batch_size", "64"]).cells[6]
    words = ["--control", "reinit", "--seed_everything", "0", "--data.batch_size", "64", "--model.optimizer.lr", "0.01"]
    typed = read_command(["--config", grid, *words])
    assert typed.cells == ()
    typed.config.pop("grid", None)
    assert cell.config["model"]["optimizer"]["init_args"] == {"lr": 0.01, "momentum": 0.9}
    assert typed.config["model"]["optimizer"]["init_args"] == {"lr": "0.01", "momentum": 0.9}
    assert (typed.config.pop("seed_everything"), cell.config.pop("seed_everything")) == ("0", 0)
    typed.config["model"]["optimizer"] = cell.config["model"]["optimizer"]
    assert typed.config == cell.config


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--seed_everything", "7"], ["model.optimizer.lr", "control"]),
        (["--control", "null", "--seed_everything", "7", "--seed_everything", "8"], ["model.optimizer.lr"]),
        (["--model.optimizer", "adam"], ["model.optimizer.lr", "control", "seed_everything"]),
        (["--grid.model.optimizer.lr", "null"], ["control", "seed_everything"]),
        (["--grid", "null", "--grid.pruning.sparsity", "[0.5]"], ["pruning.sparsity"]),
        (["--grid", "null"], []),
    ],
)
def test_options_go_over_the_grid(words: list[str], left: list[str], grid: str) -> None:
    command = read_command(["--config", grid, *words])
    assert list(command.grid) == left
    assert all(list(cell.values) == left for cell in command.cells)


@pytest.mark.parametrize(
    ("axis", "option"),
    [("pruning.density", "--pruning.compression_ratio=4"), ("pruning.sparsity", "--tickets.densities=[0.5]")],
)
def test_any_spelling_of_the_density_removes_the_axis(axis: str, option: str, base: str) -> None:
    words = ["--config", base, "--config", str(Path(base).with_name("axis.yaml"))]
    Path(words[-1]).write_text(f"grid: {{{axis}: [0.25, 0.5], seed_everything: [0, 1]}}\n")
    command = read_command(words)
    assert [cell.config["pruning"].get("density") for cell in command.cells[::2]] == (
        [0.25, 0.5] if axis == "pruning.density" else [None, None]
    )
    assert list(read_command([*words, option]).grid) == ["seed_everything"]


def test_classes_are_axes_and_options_are_their_knobs(base: str) -> None:
    words = [
        "--grid.pruning.criterion",
        "[synflow, {name: snip, batch_norm: batch}]",
        "--pruning.criterion.rounds",
        "4",
    ]
    command = read_command(["--config", base, *words])
    criteria = [cell.config["pruning"]["criterion"]["init_args"] for cell in command.cells]
    assert criteria == [{"rounds": "4"}, {"batch_norm": "batch", "rounds": "4"}]
    assert ["rounds" in cell.config["pruning"] for cell in command.cells] == [True, False]
    assert command.cells[1].title == 'cell 2 of 2: pruning.criterion {"name": "snip", "batch_norm": "batch"}'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--fresh"],
            "--fresh goes with one run: give a value for each key of the grid, model.optimizer.lr, control, ",
        ),
        (["--ckpt_path", "x"], "--ckpt_path goes with one run: "),
        (["--grid.control", "[null]", "--control", "reinit"], "--control and --grid.control: give one of them"),
        (
            ["--grid.pruning.density", "[0.5, 2]"],
            "seed_everything 0, pruning.density 2: pruning.density: expected a num",
        ),
        (["--grid.pruning.criterion", "[snpi]"], "pruning.criterion snpi: pruning.criterion: no 'snpi', did you mean"),
        (["--grid.seed_everything", "[-1]"], "cell 1 of 4: model.optimizer.lr 0.1, control null, seed_everything -1: "),
        (["--grid.seed_everything", "3"], "grid: seed_everything: expected a list of values, such as [0, 1], got 3"),
    ],
)
def test_mistakes_in_a_grid(words: list[str], message: str, grid: str) -> None:
    with pytest.raises(CommandError) as refused:
        read_command(["--config", grid, *words])
    assert message in str(refused.value)
