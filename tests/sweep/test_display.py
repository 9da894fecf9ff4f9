"""A table that fits the screen, or lines."""

from __future__ import annotations

import errno
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prunelab.sweep import display
from prunelab.sweep.display import Display, in_words
from prunelab.sweep.file import read_sweep
from prunelab.sweep.plan import plan
from prunelab.sweep.states import DONE, FAILED, QUEUED, RUNNING, CellState


@pytest.fixture
def states(here: Path) -> list[CellState]:
    Path("many.yaml").write_text("base: tiny.yaml\ngrid: {pruning.density: [0.5]}\nrepeats: 20")
    cells = plan(read_sweep(Path("many.yaml")), "runs")
    found = [CellState(cell, Path("logs") / f"{seed}.log") for seed, cell in enumerate(cells)]
    for state in found[:9]:
        state.state, state.records = DONE, [{"test_accuracy": 0.5}]
    found[2].state, found[2].reason = FAILED, "ValueError: no"
    found[9].state = RUNNING
    return found


def shown(states: list[CellState], height: int, monkeypatch: pytest.MonkeyPatch, width: int = 100) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=height, color_system=None)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    with Display(states) as table:
        table.show(200.0)
        text = screen.getvalue()
    return text


def test_of_many_cells_those_that_say_something(states: list[CellState], monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(states, 11, monkeypatch)
    assert "ValueError: no, see logs/2.log" in text
    assert "running" in text
    assert [f"seed_everything {seed} " in text for seed in (2, 6, 7, 8, 9)] == [True] * 5
    assert "queued  " not in text
    assert "8 done, 1 failed, 1 running, 10 queued; time left: about 3 minutes" in text


def test_all_cells_where_they_fit(states: list[CellState], monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(states, 60, monkeypatch)
    assert all(f"seed_everything {seed} " in text for seed in range(20))


def test_without_a_terminal_a_line_for_a_change(states: list[CellState], capsys: pytest.CaptureFixture[str]) -> None:
    with Display(states) as lines:
        lines.show(None)
        for state in states[2], states[3], states[9]:
            lines.tell(state)
    assert capsys.readouterr().out.splitlines() == [
        "failed 3 of 20, pruning.density 0.5, seed_everything 2: ValueError: no, see logs/2.log",
        "done 4 of 20, pruning.density 0.5, seed_everything 3: test accuracy 50.0 %",
        "running 10 of 20, pruning.density 0.5, seed_everything 9",
    ]


def test_time_in_words() -> None:
    assert [in_words(seconds) for seconds in (5, 89, 300, 9000)] == [
        "5 seconds",
        "89 seconds",
        "5 minutes",
        "2.5 hours",
    ]


def test_a_small_screen_has_a_line_for_each_cell_and_first_those_that_run(
    states: list[CellState], monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = "pruning.criterion synflow, compression_exponent 0.5, model.optimizer.weight_decay 0.0005, "
    for state in states:
        cell = state.planned.cell
        state.planned = replace(state.planned, cell=replace(cell, title=axes + cell.title))
    for state in states[9:17]:
        state.state = RUNNING
    for state in states[2:4]:
        state.state, state.reason = FAILED, "RuntimeError: " + "so many words " * 20
    text = shown(states, 24, monkeypatch, width=80)
    lines = [re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", line).strip() for line in text.strip().splitlines()]
    assert [line.split()[0] for line in lines] == ["state", *["running"] * 8, *["failed"] * 2, *["done"] * 7, "7"]
    assert max(map(len, lines)) <= 80
    assert len(lines) < 24
    for line, seed in zip(lines[1:], [*range(9, 17), 2, 3, 0, 1, *range(4, 9)], strict=False):
        assert f"seed_everything {seed} " in line
    assert all("begins" in line for line in lines[1:9])
    assert all("RuntimeError: so many" in line and line.endswith("…") for line in lines[9:11])
    assert lines[-1].startswith("7 done, 2 failed, 8 running, 3 queued; time left: about 3 minutes")


def test_before_anything_has_begun(states: list[CellState], monkeypatch: pytest.MonkeyPatch) -> None:
    for state in states:
        state.state = QUEUED
    assert "20 queued; time left" in shown(states, 11, monkeypatch)


class Gone(io.StringIO):
    """A terminal or pipe that is there no more."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "pipe"), OSError(errno.EIO, "terminal")])
@pytest.mark.parametrize("terminal", [True, False])
def test_nobody_is_there_to_read(
    terminal: bool,
    error: OSError,
    states: list[CellState],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(file=Gone(error), force_terminal=terminal, width=80, height=24)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    with Display(states) as table:
        table.show(200.0)
        table.tell(states[2])
        table.say("so")
