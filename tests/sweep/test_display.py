"""A table that fits the screen, or lines."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from prunelab.sweep import display
from prunelab.sweep.display import Display, in_words
from prunelab.sweep.file import read_sweep
from prunelab.sweep.plan import plan
from prunelab.sweep.states import DONE, FAILED, RUNNING, CellState


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


def shown(states: list[CellState], height: int, monkeypatch: pytest.MonkeyPatch) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=height, color_system=None)
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
