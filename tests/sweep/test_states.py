"""What a cell is doing, read from its directory and its log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunelab.sweep.file import read_sweep
from prunelab.sweep.plan import PlannedCell, plan
from prunelab.sweep.states import CellState, counts, progress, reason_in, write_states


@pytest.fixture
def cell(here: Path) -> PlannedCell:
    Path("many.yaml").write_text("base: tiny.yaml\ngrid: {pruning.density: [0.5]}")
    return plan(read_sweep(Path("many.yaml")), "runs")[0]


def test_progress_is_the_last_row_of_the_last_level(cell: PlannedCell) -> None:
    assert progress(cell) == "begins"
    level = cell.run_dir.level(0)
    level.path.mkdir(parents=True)
    assert progress(cell) == "no epoch yet"
    level.metrics.write_text("epoch,train_accuracy,val_accuracy\n1,0.5,0.25\n2,0.75,\n3,0.9")  # the last is cut off
    assert progress(cell) == "epoch 2/2, training accuracy 75.0 %"
    level.metrics.write_text("epoch,train_accuracy,val_accuracy\n1,0.5,0.25\n")
    assert progress(cell) == "epoch 1/2, validation accuracy 25.0 %"


def test_levels_have_numbers(here: Path) -> None:
    Path("many.yaml").write_text("base: tiny.yaml\nset: {tickets.levels: 2}\ngrid: {pruning.density: [0.5]}")
    (cell,) = plan(read_sweep(Path("many.yaml")), "runs")
    cell.run_dir.level(1).path.mkdir(parents=True)
    assert progress(cell) == "level 1, no epoch yet"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("$ one\ntrain.py: error: no such data\n", "train.py: error: no such data"),
        ('$ one\nTraceback:\n  File "x"\nValueError: bad\n', "ValueError: bad"),
        ("$ one\ntorch.OutOfMemoryError: much\nthe cell\n", "torch.OutOfMemoryError: much"),
        ("$ one\nKeyError: old\n$ two\nno error\nends here\n\n", "ends here"),
        ("$ one\n", "it printed nothing"),
        ("", "it printed nothing"),
    ],
)
def test_the_reason_is_the_last_error_of_the_last_attempt(log: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    assert reason_in(path) == reason


def test_of_a_long_log_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("epoch\n" * 100_000 + "ValueError: late\n")
    assert reason_in(path) == "ValueError: late"
    assert reason_in(tmp_path / "none") == "no log: No such file or directory"


def test_states_from_outside(cell: PlannedCell) -> None:
    states = [CellState(cell, Path("a.log")), CellState(cell, Path("b.log"), "failed", reason="why")]
    assert counts(states) == "1 failed, 1 queued"
    write_states(Path("states.json"), states, ["one", "two"])
    found = json.loads(Path("states.json").read_text())
    assert [entry["state"] for entry in found] == ["queued", "failed"]
    assert found[1] == {
        "cell": "pruning.density 0.5",
        "state": "failed",
        "detail": "why, see b.log",
        "run_dir": str(cell.run_dir.path),
        "log": "b.log",
        "command": "two",
    }
