"""Cells as the runs that train.py would make of them, and the mistakes that only this shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pytorch_lightning.cli import LightningArgumentParser

from prunelab import cli
from prunelab.command_line import read_command
from prunelab.experiment.run_dir import RunDir
from prunelab.names import CommandError
from prunelab.sweep.file import Sweep, read_sweep
from prunelab.sweep.plan import PlannedCell, arguments, command_of, plan, seconds_by_kind, seconds_left, seconds_of


def sweep(text: str) -> Sweep:
    path = Path("many.yaml")
    path.write_text(f"base: tiny.yaml\n{text}")
    return read_sweep(path)


def planned(text: str, output_dir: str = "runs") -> list[PlannedCell]:
    return plan(sweep(text), output_dir)


def by_hand(cell: PlannedCell, output_dir: str, parser: LightningArgumentParser) -> RunDir:
    """The directory that train.py would take."""
    command = read_command(arguments(cell.cell, output_dir))
    plain, where, _ = cli.plain_values(parser, cli.resolve(parser, command.config))
    return RunDir.of(where, command.name, plain)


def test_each_cell_is_the_run_of_its_command(here: Path) -> None:
    grid = """\
grid:
  - {pruning.criterion: [snip, {name: snip, rounds: 5}], compression_exponent: [0, 0.5], model.net.width: [8, 16]}
  - {pruning.sparsity: [0.5, 0.25], control: [null]}
  - {tickets.levels: [2], tickets.density_per_level: [0.5, 0.25]}
repeats: 2
"""
    parser = cli.build_parser()
    for output_dir in ("runs", "elsewhere"):
        cells = planned(grid, output_dir)
        assert len({cell.run_dir for cell in cells}) == len(cells) == 24
        for cell in cells[::3]:
            assert cell.run_dir == by_hand(cell, output_dir, parser)
            assert cell.records() is None
    assert command_of(cells[0].cell, "elsewhere", 2) == (
        "OMP_NUM_THREADS=2 python train.py --config tiny.yaml --pruning.criterion snip --pruning.compression_ratio 1.0 "
        "--model.net.width 8 --seed_everything 0 --output_dir elsewhere"
    )
    assert not Path("runs").exists()


def test_a_cell_has_its_seed_even_if_the_grid_has_none(here: Path) -> None:
    (cell,) = planned("set: {seed_everything: 3}\ngrid: {pruning.density: [0.5]}")
    assert dict(cell.cell.values) == {"pruning.density": 0.5, "seed_everything": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {pruning.densty: [0.5]}", "unknown key pruning.densty, did you mean pruning.density?"),
        ("grid: {pruning.criterion: [synfow]}", "pruning.criterion: no 'synfow', did you mean synflow?"),
        ("grid: {pruning.density: [0.5, 2]}", "pruning.density 2: pruning.density: expected a number in (0, 1]"),
        ("grid: {model.optimizer.lr: [fast]}", "model.optimizer.lr fast: "),
        ("grid: {trainer.max_epochs: [1, 2]}", "2: is the same run as trainer.max_epochs 1, in runs/"),
        ("grid: {pruning.density: [0.5, 0.50]}", "pruning.density 0.5: is listed twice"),
        ("grid: {config: [nowhere.yaml]}", "no config 'nowhere.yaml'"),
        ("grid: {config: [gridded.yaml]}", "its config has a grid of its own, seed_everything"),
        ("grid: {trainer.max_epochs: [null]}", "say how long to train"),
        ("grid: {control: [reinit]}\nset: {tickets.levels: 1}", "control reinit needs the finished ticket"),
        ("grid: {model.net: [vgg16_bn]}", "vgg16_bn"),
        ("set: {output_dir: there}\ngrid: {data: [digits]}", "output_dir there: give it to the sweep"),
        ("set: {pruning.density: 0.1}\ngrid: {compression_exponent: [1]}", "give one of them"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_runs(text: str, message: str, here: Path) -> None:
    Path("gridded.yaml").write_text("grid: {seed_everything: [0, 1]}")
    with pytest.raises(CommandError) as error:
        planned(text)
    assert message in " ".join(str(error.value).split())
    assert not Path("runs").exists()


def test_a_control_waits_for_a_ticket_of_the_sweep(here: Path) -> None:
    control, ticket = planned("grid: {control: [reinit, null]}\nset: {tickets.levels: 1}")
    assert control.ticket == ticket.run_dir
    assert ticket.ticket is None
    assert control.records() is None


def test_time_is_that_of_the_same_kind(here: Path) -> None:
    small, other, large = planned("grid: {pruning.density: [0.5, 0.2], model.net.width: [8]}\n")[:2] + planned(
        "grid: {model.net.width: [16]}"
    )
    assert small.kind == other.kind != large.kind
    records = [{"seconds_scoring": 1.0, "seconds_training": 4.0}, {"seconds_scoring": 0.5, "seconds_training": 0.5}]
    assert seconds_of(records) == 6
    by_kind = seconds_by_kind([(small, 6.0), (other, 8.0)])
    assert seconds_left([(small, 0), (other, 0), (small, 0), (other, 0)], by_kind, 2) == 14
    assert seconds_left([(small, 0)], by_kind, 2) == 7
    assert seconds_left([(small, 0), (other, 3), (small, 100)], by_kind, 2) == (7 + 4 + 0) / 2
    assert seconds_left([], by_kind, 2) == 0
    assert seconds_left([(small, 0), (large, 0)], by_kind, 2) is None
    assert json.loads(small.kind)[2]["max_epochs"] == 2


def test_a_ticket_that_is_to_train_on_comes_before_its_finished_control(here: Path) -> None:
    grid = "grid: {control: [random, null]}\nset: {trainer.max_epochs: %d}"
    for cell in planned(grid % 2):
        cell.run_dir.level(0).path.mkdir(parents=True)
        record = {"level": 0, "max_epochs": 2, "epochs": 2, "out_of_time": False}
        cell.run_dir.level(0).record.write_text(json.dumps(record))
    assert [len(cell.records() or []) for cell in planned(grid % 2)] == [1, 1]
    assert [cell.records() for cell in planned(grid % 3)] == [None, None]
    with pytest.raises(CommandError, match="its ticket was trained with --trainer"):
        planned("grid: {control: [random]}\nset: {trainer.max_epochs: 3}")
