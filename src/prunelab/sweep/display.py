"""The sweep on the screen: a table that lives, or a line for every change where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prunelab.sweep.states import DONE, FAILED, QUEUED, RUNNING, CellState, counts

_STYLES = {RUNNING: "bold", DONE: "green", FAILED: "red", QUEUED: "dim"}
_OTHER_LINES = 6  # of the screen


class Display:
    """`with Display(states) as display`: `show` often, `tell` what happened to a cell."""

    def __init__(self, states: Sequence[CellState]) -> None:
        self._states = states
        self._console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """A line that stays, above the table."""
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
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("state", "cell", ""):
            table.add_column(column, overflow="fold")
        for state in self._rows():
            table.add_row(Text(state.state, _STYLES[state.state]), Text(state.title), Text(state.detail()))
        left = "unknown as yet" if seconds_left is None else f"about {in_words(seconds_left)}"
        table.caption, table.caption_justify = Text(f"{counts(self._states)}; time left: {left}"), "left"
        self._live.update(table, refresh=True)

    def _rows(self) -> list[CellState]:
        """All cells in their order, or of many those that say something, and the last that were done."""
        room = max(1, self._console.height - _OTHER_LINES)
        if len(self._states) <= room:
            return list(self._states)
        telling = [state for state in self._states if state.state in (RUNNING, FAILED)][-room:]
        rest = room - len(telling)
        done = [state for state in self._states if state.state == DONE]
        return [*(done[-rest:] if rest else []), *telling]


def in_words(seconds: float) -> str:
    """13 seconds, 5 minutes, 2.5 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
