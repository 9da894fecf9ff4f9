"""The sweep on the screen: a table that lives, or a line for every change where there is no terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prunelab.sweep.states import DONE, FAILED, QUEUED, RUNNING, CellState, counts

_STYLES = {RUNNING: "bold", DONE: "green", FAILED: "red", QUEUED: "dim"}
_OTHER_LINES = 6  # of the screen
_STATE_WIDTH, _GAPS = 7, 4


class Display:
    """`with Display(states) as display`: `show` often, `tell` what happened to a cell."""

    def __init__(self, states: Sequence[CellState]) -> None:
        self._states = states
        self._console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            live = Live(console=self._console, auto_refresh=False, transient=True)
            with _unless_closed():
                live.start()
                self._live = live
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the screen back."""
        if self._live is not None:
            with _unless_closed():
                self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """A line that stays, above the table."""
        with _unless_closed():
            self._console.print(Text(line))

    def tell(self, state: CellState) -> None:
        """That a cell's state has changed."""
        if self._live is None or state.state == FAILED:
            place = self._states.index(state) + 1
            detail = f": {found}" if (found := state.detail()) and state.state != RUNNING else ""
            self.say(f"{state.state} {place} of {len(self._states)}, {state.title}{detail}")

    def show(self, seconds_left: float | None) -> None:
        """The table as it is now."""
        if self._live is None:
            return
        rows = [(state, state.detail()) for state in self._rows()]
        title_width = self._title_width(rows)
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("state", width=_STATE_WIDTH)
        table.add_column("cell", width=title_width)
        table.add_column("")
        for state, detail in rows:
            title = state.title  # of a long one the end is shown, where neighbours differ
            title = title if len(title) <= title_width else f"…{title[1 - title_width :]}"
            table.add_row(Text(state.state, _STYLES[state.state]), _line(title), _line(detail))
        left = "unknown as yet" if seconds_left is None else f"about {in_words(seconds_left)}"
        below = _line(f"{counts(self._states)}; time left: {left}")
        with _unless_closed():
            self._live.update(Group(table, below), refresh=True)

    def _title_width(self, rows: Sequence[tuple[CellState, str]]) -> int:
        """What titles need, if the details do not need it too; then what these leave, or half."""
        room = max(2, self._console.width - _STATE_WIDTH - _GAPS)
        titles = max((len(state.title) for state, _ in rows), default=0)
        details = max((len(detail) for _, detail in rows), default=0)
        return max(2, min(titles, max(room - details, room // 2)))

    def _rows(self) -> list[CellState]:
        """All cells in their order, or of many those that run, and then the last that failed or were done."""
        room = max(1, self._console.height - _OTHER_LINES)
        if len(self._states) <= room:
            return list(self._states)
        rows: list[CellState] = []
        for kind in (RUNNING, FAILED, DONE):
            of_kind = [state for state in self._states if state.state == kind]
            free = room - len(rows)
            rows += (of_kind[:free] if kind == RUNNING else of_kind[-free:]) if free else []
        return rows


def say(text: str) -> None:
    """Print it, if there is somebody to read it."""
    with _unless_closed():
        print(text, flush=True)


def in_words(seconds: float) -> str:
    """13 seconds, 5 minutes, 2.5 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


@contextmanager
def _unless_closed() -> Iterator[None]:
    """What is said to a terminal or pipe that is gone goes nowhere, and so does all that follows: the runs go on."""
    try:
        yield
    except (OSError, SystemExit):  # rich makes SystemExit of a closed pipe
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
