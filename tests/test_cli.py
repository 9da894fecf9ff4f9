"""From the command line to typed values, to objects, and to the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelSummary
from torch import Tensor, nn

from prunelab import cli
from prunelab.command_line import Command, read_command
from prunelab.pruning import Scoring
from prunelab.pruning.criteria import Grasp, Snip, SynFlow

BASE = """\
model:
  net: {name: resnet20, num_classes: 10}
  optimizer: {name: sgd, lr: 1e-1, momentum: 0.9, nesterov: true, weight_decay: 1e-4}
  lr_scheduler: {name: multistep, milestones: [80, 120], gamma: 0.1}
data: {name: cifar10, batch_size: 64}
pruning: {criterion: {name: synflow, rounds: 50}, density: 0.1}
trainer: {max_epochs: 3}
"""


def users_net(num_classes: int = 1000, depth: int = 1) -> nn.Module:
    """A network that knows the number of classes, but no image size."""
    return nn.Linear(depth, num_classes)


class UsersCriterion:
    """A criterion of the user's, with a knob."""

    rounds = 1
    needs_batches = False
    revives = False
    allocation = None

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        return {name: weight.abs() ** self.power for name, weight in scoring.weights().items()}


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return str(path)


def resolved(*argv: str) -> Namespace:
    return cli.resolve(cli.build_parser(), read_command(list(argv)).config)


def built(*argv: str) -> Any:
    parser = cli.build_parser()
    return parser.instantiate(cli.resolve(parser, read_command(list(argv)).config))


def test_values_get_their_types_and_defaults(base: str) -> None:
    config = resolved("--config", base, "--data.batch_size", "32", "--pruning.density", "1e-2")
    assert config.seed_everything == 0
    assert config.output_dir == "runs"
    assert config.model.optimizer.init_args.weight_decay == 1e-4
    assert config.data.init_args.batch_size == 32
    assert config.pruning.density == 0.01
    assert config.pruning.criterion.init_args.input == "ones"  # a knob nobody named


def test_seed_zero_counts(base: str, tmp_path: Path) -> None:
    layer = tmp_path / "seed.yaml"
    layer.write_text("seed_everything: 7\n")
    assert resolved("--config", base, "--config", str(layer)).seed_everything == 7
    assert resolved("--config", base, "--config", str(layer), "--seed_everything", "0").seed_everything == 0


@pytest.mark.parametrize(
    ("words", "criterion"),
    [
        ([], SynFlow(rounds=50)),
        (["--pruning.criterion.rounds", "7"], SynFlow(rounds=7)),
        (["--pruning.criterion", "synflow", "--pruning.criterion.input", "mean_abs"], SynFlow(50, "mean_abs")),
        (["--pruning.criterion", "snip"], Snip()),
        (["--pruning.criterion", "{name: snip, batch_norm: batch}"], Snip(batch_norm="batch")),
        (["--pruning.criterion.temperature=100", "--pruning.criterion=GraSP"], Grasp(temperature=100.0)),
    ],
)
def test_criteria_by_short_name_are_typed(words: list[str], criterion: object, base: str) -> None:
    assert built("--config", base, *words).pruning.criterion == criterion


def test_a_criterion_of_the_users_by_import_path(base: str) -> None:
    path = f"{__name__}.UsersCriterion"
    criterion = built("--config", base, "--pruning.criterion", path, "--pruning.criterion.power", "2").pruning.criterion
    assert isinstance(criterion, UsersCriterion)
    assert criterion.power == 2.0


def test_another_network_takes_over_what_it_knows_of_the_data(base: str) -> None:
    net = built("--config", base, "--model.net", f"{__name__}.users_net", "--model.net.depth", "4").model.net
    assert net.weight.shape == (10, 4)


def test_torchvisions_networks_by_import_path(base: str) -> None:
    net = built("--config", base, "--model.net", "torchvision.models.resnet18").model.net
    assert net.fc.out_features == 10


def test_another_optimizer_starts_from_its_own_defaults(base: str) -> None:
    optimizer = built("--config", base, "--model.optimizer", "adamw").model.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["lr"] == 1e-3


def test_callbacks_of_the_users_are_appended(base: str) -> None:
    callbacks = built(
        "--config", base, "--trainer.callbacks+=ModelSummary", "--trainer.callbacks.max_depth=3"
    ).trainer.callbacks
    (summary,) = callbacks
    assert isinstance(summary, ModelSummary)
    assert summary._max_depth == 3


def test_the_run_gets_plain_values_and_fresh_objects(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def record(**arguments: Any) -> int:
        given.update(arguments)
        return 17

    monkeypatch.setattr(cli, "run", record)
    checkpoint = Path(base).with_name("some.ckpt")
    checkpoint.touch()
    words = [
        "--config",
        base,
        "--output_dir",
        "2024",
        "--ckpt_path",
        str(checkpoint),
        "--trainer.callbacks+=ModelSummary",
    ]
    assert cli.main(words) == 17
    assert (given["name"], given["output_dir"], given["ckpt_path"]) == ("base", "2024", str(checkpoint))
    assert given["config"].keys() == {"seed_everything", "trainer", "model", "data", "pruning"}
    assert given["config"]["pruning"]["criterion"]["init_args"]["rounds"] == 50
    assert given["config"]["data"]["class_path"] == "prunelab.data.cifar10"
    assert yaml.safe_load(yaml.safe_dump(given["config"])) == given["config"]

    first, second = given["instantiate"](), given["instantiate"]()
    assert [type(part).__name__ for part in first] == ["dict", "Classifier", "ImageDataModule", "PruningAtInit"]
    assert all(one is not other for one, other in zip(first, second, strict=True))
    assert first[0]["callbacks"][0] is not second[0]["callbacks"][0]
    assert first[0]["max_epochs"] == 3


def test_print_config_prints_what_a_run_would_use(
    base: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["--config", base, "--pruning.sparsity", "0.75", "--print_config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again = resolved("--config", str(printed))
    assert again == resolved("--config", base, "--pruning.sparsity", "0.75")


def test_help_all_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help_all"]) == 0
    text = capsys.readouterr().out
    for key in ("--trainer.max_epochs", "--model.label_smoothing", "--pruning.min_layer_density", "--output_dir"):
        assert key in text
    assert any(line.split()[:3] == ["grasp", "rounds", "temperature"] for line in text.splitlines())


def test_interrupted_is_130(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["--config", base]) == 130


def test_errors_of_the_program_keep_their_traceback(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> int:
        raise FileNotFoundError(2, "a bug", "some file")

    monkeypatch.setattr(cli, "run", broken)
    command = read_command(["--config", base])
    assert isinstance(command, Command)
    with pytest.raises(FileNotFoundError):
        cli.run_command(command)
