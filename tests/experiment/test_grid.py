"""Grids of real runs on the digits: as if typed one by one, in any number of attempts, and one table."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from prunelab import cli
from prunelab.experiment import grid, run
from prunelab.experiment.grid import grid_table
from prunelab.training.interruption import Interrupted

BASE = """\
model:
  net: {name: mlp, depth: 2, width: 8, image_size: 8}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
data: {name: digits, device: cpu}
pruning: {criterion: magnitude, density: 0.5}
trainer: {max_epochs: 1, limit_train_batches: 4, accelerator: cpu, enable_progress_bar: false}
"""
GRID = """\
tickets: {levels: 1}
grid:
  control: [reinit, null]
  seed_everything: [0, 1]
"""


@dataclass(frozen=True)
class Outcome:
    """A grid of which one cell was run by hand before: what it printed, the first and the second time."""

    by_hand: str
    changed: list[Path]  # of the files of the run by hand
    first: str
    second: str


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    place = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write_configs(place)
        main("--tickets.levels", "1", "--seed_everything", "1")
        (by_hand,) = Path("runs").iterdir()
        before = {path: path.stat().st_mtime_ns for path in by_hand.rglob("*")}
        first, second = printed_by_grid(), printed_by_grid()
        changed = [path for path, time in before.items() if path.stat().st_mtime_ns != time]
        yield Outcome(by_hand.name, changed, first, second)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_configs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_configs(place: Path) -> None:
    (place / "tiny.yaml").write_text(BASE)
    (place / "tiny_grid.yaml").write_text(GRID)


def main(*words: str) -> int:
    return cli.main(["--config", "tiny.yaml", *words])


def main_grid(*words: str) -> int:
    return main("--config", "tiny_grid.yaml", *words)


def printed_by_grid(*words: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        assert main_grid(*words) == 0
    return out.getvalue()


def records(output_dir: str = "runs") -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path(output_dir).glob("*/level_*/record.json"))]


def names() -> set[str]:
    return {path.name for path in Path("runs").iterdir()}


def table_rows(out: str) -> list[list[str]]:
    lines = [line for line in out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_cells_announce_themselves_and_one_that_ran_by_hand_is_not_run_again(outcome: Outcome) -> None:
    assert [line for line in outcome.first.splitlines() if line.startswith("cell ")] == [
        "cell 1 of 4: control null, seed_everything 0",
        "cell 2 of 4: control null, seed_everything 1: finished earlier",
        "cell 3 of 4: control reinit, seed_everything 0",
        "cell 4 of 4: control reinit, seed_everything 1",
    ]
    assert outcome.changed == []
    assert len(names()) == 4
    assert outcome.by_hand in names()
    assert all("grid" not in (path / "config.yaml").read_text() for path in Path("runs").iterdir())
    assert outcome.first.split()[-1] == "runs"


def test_a_cell_typed_by_hand_is_the_run_that_the_grid_made(
    outcome: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    made = names()
    assert main_grid("--control", "reinit", "--seed_everything", "0") == 0
    assert main("--control", "reinit", "--tickets.levels", "1", "--seed_everything", "0") == 0
    out = capsys.readouterr().out
    assert out.count("finished earlier, nothing to do") == 2
    assert "cell " not in out
    assert names() == made


def test_the_table_has_the_mean_and_deviation_of_the_records(outcome: Outcome) -> None:
    header, _, *rows = table_rows(outcome.first)
    assert header == [
        *("control", "level", "density", "n"),
        *("mean test_accuracy (%)", "std", "mean test_accuracy_best (%)", "std"),
    ]
    expected = []
    for control, level, density in ((None, 0, "1"), (None, 1, "0.5"), ("reinit", 1, "0.5")):
        repeats = [record for record in records() if (record["control"], record["level"]) == (control, level)]
        assert {record["seed"] for record in repeats} == {0, 1}
        row = [control or "-", str(level), density, "2"]
        for value in ("test_accuracy", "test_accuracy_best"):
            one, other = (100 * record[value] for record in repeats)
            row += [f"{(one + other) / 2:.2f}", f"{abs(one - other) / sqrt(2):.2f}"]  # of two values
        expected.append(row)
    assert rows == expected


def test_the_second_time_every_cell_is_a_line_and_the_table_is_the_same(outcome: Outcome) -> None:
    lines, before = outcome.second.splitlines(), outcome.first.splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:4]] == ["finished earlier"] * 4
    assert lines[4:] == before[-len(lines[4:]) :]
    assert len(table_rows(outcome.second)) == 5


def test_an_interrupted_grid_goes_on_where_it_was(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, train_level = [], run.train_level

    def third_is_interrupted(job: Any, index: int, *rest: Any) -> Any:
        trained.append((job.control, index))
        if len(trained) == 3:
            raise Interrupted(15)
        return train_level(job, index, *rest)

    monkeypatch.setattr(run, "train_level", third_is_interrupted)
    with pytest.raises(SystemExit) as left:
        main_grid("--seed_everything", "0")
    assert left.value.code == 128 + 15
    assert trained == [(None, 0), (None, 1), ("reinit", 1)]

    out = printed_by_grid("--seed_everything", "0")
    assert "cell 1 of 2: control null: finished earlier\n" in out
    assert trained[3:] == [("reinit", 1)]
    whole = printed_by_grid("--seed_everything", "0", "--output_dir", "others")
    assert table_rows(whole) == table_rows(out)
    assert [record["test_loss"] for record in records("others")] == [record["test_loss"] for record in records()]
    assert len(records()) == 3


def test_a_signal_between_two_cells_names_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(grid, "_run_cell", terminated)
    with pytest.raises(SystemExit) as left:
        main_grid()
    assert left.value.code == 143


def test_a_mistake_in_a_cell_ends_the_grid_and_names_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--grid.model.optimizer.lr", "[0.1, -1, 0.2]") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "train.py: error: cell 2 of 3: model.optimizer.lr -1: optimizer, schedule or trainer"
    )
    assert captured.err.count("\n") == 1
    assert len(names()) == 1
    assert main("--grid.model.optimizer.lr", "[0.1]", "--grid.control", "[reinit]") == 0
    assert main("--grid.model.optimizer.lr", "[0.2]", "--grid.control", "[reinit]") == 2
    assert "cell 1 of 1: model.optimizer.lr 0.2, control reinit: control reinit needs the finished ticket" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--grid.seed_everything [0,0]", "cell 2 of 2: seed_everything 0: the same run as cell 1 of 2"),
        ("--grid.trainer.max_epochs [1,2]", "cell 2 of 2: trainer.max_epochs 2: the same run as cell 1 of 2"),
        ("--grid.tickets.densities [[0.5],[0.2,0.5]]", "cell 2 of 2: tickets.densities [0.2, 0.5]: tickets"),
    ],
)
def test_mistakes_that_only_the_cells_together_show(
    words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(*words.split()) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_grid_of_runs_of_one_level_asks_for_more_epochs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--grid.seed_everything", "[3]"]
    assert main(*words) == 0
    assert main(*words, "--trainer.max_epochs", "2") == 0
    assert [record["epochs"] for record in records()] == [2]
    out = capsys.readouterr().out
    assert "finished earlier" not in out
    assert table_rows(out)[-1][:2] == ["0.5", "1"]  # no level, n = 1
    assert main(*words, "--trainer.max_epochs", "1") == 2
    assert "cell 1 of 1: seed_everything 3: runs/" in capsys.readouterr().err


def test_what_was_not_measured_has_no_column() -> None:
    row = {"num_levels": 1, "level": 0, "density": 0.5, "test_accuracy": 0.25, "test_accuracy_best": None}
    header = grid_table([row | {"control": None}], ["control", "seed_everything"]).splitlines()[0]
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        *("control", "density", "n", "mean test_accuracy (%)", "std", "min", "max"),
    ]
