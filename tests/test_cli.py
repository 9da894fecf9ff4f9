"""From the command line to typed values, to objects, and to the run."""

from __future__ import annotations

from dataclasses import fields
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
from prunelab.experiment.levels import Tickets
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


@pytest.mark.parametrize("key", cli.BATCHES_OR_SHARE)
def test_one_batch_is_not_the_whole_share(key: str, base: str) -> None:
    """Whatever order the parser has for `int | float`, which depends on what was imported before it."""
    for text, value in (("1", 1), ("1.0", 1.0), ("4", 4), ("0.5", 0.5)):
        found = resolved("--config", base, f"--trainer.{key}", text).trainer[key]
        assert (type(found), found) == (type(value), value)


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
    assert given["fresh"] is False
    assert given["config"].keys() == {"seed_everything", "trainer", "model", "data", "pruning", "tickets", "control"}
    assert given["config"]["pruning"]["criterion"]["init_args"]["rounds"] == 50
    assert given["config"]["data"]["class_path"] == "prunelab.data.cifar10"
    assert yaml.safe_load(yaml.safe_dump(given["config"])) == given["config"]

    first, second = given["instantiate"](), given["instantiate"]()
    assert [type(part).__name__ for part in first] == ["dict", "Classifier", "ImageDataModule", "PruningAtInit"]
    assert all(one is not other for one, other in zip(first, second, strict=True))
    assert first[0]["callbacks"][0] is not second[0]["callbacks"][0]
    assert first[0]["max_epochs"] == 3


def test_fresh_reaches_the_run(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(cli, "run", lambda **arguments: given.update(arguments) or 0)
    assert cli.main(["--fresh", "--config", base]) == 0
    assert given["fresh"] is True
    assert "fresh" not in given["config"]


def test_levels_are_typed_and_completed(base: str) -> None:
    words = ["--tickets.levels", "2", "--tickets.rewind_step", "500it", "--tickets.layer_rates", '{"fc*": 1}']
    given = resolved("--config", base, *words, "--control", "random")
    assert given.control == "random"
    tickets = Tickets(**given.tickets.as_dict())
    assert tickets == Tickets(levels=2, rewind_step="500it", layer_rates={"fc*": 1.0})
    assert type(tickets.layer_rates["fc*"]) is float
    assert given.tickets.as_dict().keys() == {field.name for field in fields(Tickets)}
    assert resolved("--config", base, "--tickets.rewind_step", "500").tickets.rewind_step == 500
    assert resolved("--config", base, "--tickets.densities", "[1, 0.5]").tickets.densities == [1.0, 0.5]
    plain = resolved("--config", base)
    assert plain.control is None
    assert Tickets(**plain.tickets.as_dict()) == Tickets()


def test_masks_from_elsewhere_need_no_criterion(base: str) -> None:
    pruning = built("--config", base, "--pruning.masks_from", "runs/some").pruning
    assert (pruning.criterion, pruning.density, pruning.masks_from) == (None, None, "runs/some")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tickets.levls 3", "unknown key tickets.levls, did you mean tickets.levels?"),
        ("--levels 3", "unknown key levels, did you mean tickets.levels?"),
        ("--tickets.levels many", "tickets.levels: expected int or null, got many"),
        ("--tickets.rewind weight", "tickets.rewind: expected one of weights, learning_rate, finetune; got weight"),
        ("--tickets.densities 0.5", "tickets.densities: expected list[float] or null, got 0.5"),
        ("--tickets.densities [a]", "tickets.densities: expected float, got a"),
        ("--tickets.layer_rates [1]", "tickets.layer_rates: expected dict[str, float] or null, got [1]"),
        ("--tickets.layer_rates {fc:x}", "tickets.layer_rates: "),
        ("--tickets.supermask maybe", "tickets.supermask: expected bool, got maybe"),
        ("--tickets 3", "tickets: expected a mapping, got 3"),
        ("--control randm", "got randm, did you mean random?"),
        ("--control", "--control needs a value"),
        ("--pruning.masks_from x --pruning.density 0.5", "pruning has masks_from and density: give one of them"),
    ],
)
def test_mistakes_about_levels(words: str, message: str, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", base, *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_print_config_prints_what_a_run_would_use(
    base: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["--config", base, "--pruning.sparsity", "0.75", "--print_config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again = resolved("--config", str(printed))
    assert again == resolved("--config", base, "--pruning.sparsity", "0.75")


@pytest.mark.parametrize("precision", ["16-mixed", "bf16"])
def test_fused_and_clipping_under_mixed_precision_is_refused(
    precision: str, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", base, "--model.optimizer.fused", "true", "--trainer.gradient_clip_val", "1"]
    assert resolved(*words).model.optimizer.init_args.fused
    assert cli.main([*words, "--trainer.precision", precision]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.optimizer.fused: not with trainer.gradient_clip_val under trainer.precision" in line


def test_help_all_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help_all"]) == 0
    text = capsys.readouterr().out
    for key in ("--trainer.max_epochs", "--model.label_smoothing", "--pruning.min_layer_density", "--output_dir"):
        assert key in text
    for key in ("--fresh", "--control", "--tickets.rewind_step"):
        assert f"\n  {key}" in text
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


def test_mistakes_in_a_grid_are_found_before_a_run(
    base: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "run_grid", lambda *_: pytest.fail("something ran"))
    for axis, message in (
        ("model.optimizer.lr [0.1, fast]", "cell 2 of 2: model.optimizer.lr fast: model.optimizer.lr: expected float"),
        ("model.optimizer.lrr [0.1]", "cell 1 of 1: model.optimizer.lrr 0.1: unknown key model.optimizer.lrr, did you"),
        ("control [null, randm]", "cell 2 of 2: control randm: control: expected one of random, shuffle"),
    ):
        key, _, values = axis.partition(" ")
        assert cli.main(["--config", base, f"--grid.{key}", values]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert cli.main(["--config", base, "--gird.seed_everything", "[0]"]) == 2
    assert "unknown key gird.seed_everything, did you mean" in capsys.readouterr().err


def test_print_config_prints_the_grid_to_run_again(
    base: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--config", base, "--grid.model.optimizer.lr", "[0.1, 0.01]", "--grid.control", "[reinit, null]"]
    assert cli.main([*words, "--print_config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    given, again = read_command(words), read_command(["--config", str(printed)])
    assert again.grid == given.grid == {"model.optimizer.lr": [0.1, 0.01], "control": ["reinit", None]}
    parser = cli.build_parser()
    for one, other in zip(given.cells, again.cells, strict=True):
        assert cli.resolve(parser, one.config) == cli.resolve(parser, other.config)


def test_where_a_cell_failed_stands_before_what_failed(
    base: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> int:
        error = OSError(28, "No space left on device", "some.ckpt")
        error.add_note("cell 2 of 2: seed_everything 1")
        raise error

    monkeypatch.setattr(cli, "run_grid", full_disk)
    assert cli.main(["--config", base, "--grid.seed_everything", "[0, 1]"]) == 2
    expected = "train.py: error: cell 2 of 2: seed_everything 1: some.ckpt: No space left on device\n"
    assert capsys.readouterr().err == expected
