"""A sweep from its first run to its table, through the death of runs, workers and itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prunelab.experiment.errors import RunError
from prunelab.experiment.lock import held, holder_of
from prunelab.experiment.run_dir import write_atomically
from prunelab.report.results import write_results
from prunelab.sweep.display import Display, say
from prunelab.sweep.file import Sweep
from prunelab.sweep.fork_server import HELD, Order
from prunelab.sweep.local import End, Engine
from prunelab.sweep.plan import PlannedCell, arguments, command_of, seconds_by_kind, seconds_left, seconds_of
from prunelab.sweep.states import DONE, FAILED, QUEUED, RUNNING, CellState, begun, counts, reason_in, write_states
from prunelab.sweep.stopping import Stop

DEATHS_ALLOWED = 3
SECONDS_BEFORE_AGAIN = 1.0  # what was killed with its worker may hold its directory for a moment
SECONDS_BEFORE_ASKING = 3.0  # again whether another process still holds a run's directory
_ENDED_BY_SIGNAL = [128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
_LOOK_EVERY, _SHOW_EVERY, _STATES_EVERY, _DRAW_EVERY = 0.05, 0.5, 5.0, 60.0  # seconds


class Driver:
    """Runs what is not finished of `cells`, and writes the results as they come.

    folder: of the sweep; another process cannot work in it at the same time. make_engine: starts the engine, once it is
    clear that something is to run, for at most so many runs at a time.
    """

    def __init__(self, sweep: Sweep, cells: Sequence[PlannedCell], folder: Path, threads: int, output_dir: str) -> None:
        self._sweep, self._folder, self._threads = sweep, folder, threads
        self._arguments = [arguments(planned.cell, output_dir) for planned in cells]
        self._commands = [command_of(planned.cell, output_dir, threads) for planned in cells]
        self._states = [CellState(planned, folder / "logs" / f"{planned.run_dir.path.name}.log") for planned in cells]
        self._of_run = {state.planned.run_dir: state for state in self._states}
        self._stop, self._told = Stop(), False
        self._durations: list[tuple[PlannedCell, float]] = []
        self._next: dict[str, float] = {}
        self._complaints: dict[str, str] = {}

    def run(self, make_engine: Callable[[int], Engine]) -> int:
        """Returns the exit code: 1 if a cell has failed, 128 + its number after a signal.

        Raises: RunError for a folder that another sweep works in, or whose results are of another file, and what
        `make_engine` raises.
        """
        (self._folder / "logs").mkdir(parents=True, exist_ok=True)
        with held(self._folder / "lock"):
            self._take_folder()
            self._find_finished()
            left = sum(state.state != DONE for state in self._states)
            say(f"{self._sweep.claim}\n{len(self._states)} cells, {counts(self._states)}")
            if left:
                engine = make_engine(left)
                say(f"{engine.name}, threads of each: {self._threads}; logs in {self._folder / 'logs'}")
                with Display(self._states) as display, self._stop.on_signals(display.close):
                    try:
                        self._loop(engine, display)
                    finally:
                        engine.close()
            self._guarded("states.json", self._write_states, say)
            return self._conclude()

    def _take_folder(self) -> None:
        """See that the results in the folder are of this sweep's file, or of one that is gone."""
        note, mine = self._folder / "made_from.txt", str(self._sweep.path.resolve())
        other = note.read_text().strip() if note.exists() else mine
        if other != mine and Path(other).is_file():
            raise RunError(f"{self._folder} has the results of {other}: rename the sweep, or give another --output_dir")
        write_atomically(note, f"{mine}\n")

    def _find_finished(self) -> None:
        for state in self._states:
            if (records := state.planned.records()) is not None:
                state.state, state.records = DONE, records
                self._durations.append((state.planned, seconds_of(records)))

    def _ticket_of(self, state: CellState) -> CellState | None:
        """The cell whose run a control needs, if it is one of the sweep."""
        return None if state.planned.ticket is None else self._of_run.get(state.planned.ticket)

    def _loop(self, engine: Engine, display: Display) -> None:
        while True:
            for state in self._in(RUNNING):
                assert state.running is not None
                if end := state.running.poll():
                    self._ended(state, end)
                    display.tell(state)
                    self._results(display)
            if self._stop.number:
                self._leave(display)
            else:
                self._start(engine, display)
            if not self._in(RUNNING) and (self._stop.number or not self._in(QUEUED)):
                return
            if self._is_time("states", _STATES_EVERY):
                self._guarded("states.json", self._write_states, display.say)
            if self._is_time("show", _SHOW_EVERY):
                self._guarded("live table", lambda: display.show(self._seconds_left(engine.slots)), display.say)
            time.sleep(_LOOK_EVERY)

    def _in(self, state: str) -> list[CellState]:
        return [one for one in self._states if one.state == state]

    def _start(self, engine: Engine, display: Display) -> None:
        """Fill the slots."""
        free = engine.slots - len(self._in(RUNNING))
        for state in self._in(QUEUED):
            ticket, before = self._ticket_of(state), state.detail()
            if ticket is not None and ticket.state == FAILED:
                self._fail(state, f"its ticket failed, {ticket.title}")
            elif free > 0 and time.monotonic() >= state.not_before and (ticket is None or ticket.state == DONE):
                self._begin(state, engine)
                free -= state.state == RUNNING
            if state.state != QUEUED or state.detail() != before:
                display.tell(state)

    def _begin(self, state: CellState, engine: Engine) -> None:
        if (holder := holder_of(state.planned.run_dir.lock)) is not None:
            self._wait(state, holder)
            return
        place = self._states.index(state)
        log = str(state.log.absolute())
        state.resumed = begun(state.planned.run_dir)
        try:
            state.running = engine.start(
                Order(self._commands[place], self._arguments[place], log, os.getcwd(), self._threads)
            )
        except OSError as error:  # no memory for a process, no number for a file
            self._again(state, f"it could not be started: {error}")
            return
        state.state, state.holder, state.began = RUNNING, "", time.monotonic()

    def _ended(self, state: CellState, end: End) -> None:
        state.running = None
        if end.code == 0:
            try:
                state.records = state.planned.records_there()
            except (RunError, OSError) as error:
                self._fail(state, str(error))
                return
            if not state.records:
                self._fail(state, "it ended without a record")
                return
            state.state, state.reason = DONE, ""
            is_whole = not (state.resumed or state.deaths)
            seconds = time.monotonic() - state.began if is_whole else seconds_of(state.records)
            self._durations.append((state.planned, seconds))
        elif self._stop.number:
            state.state, state.reason = QUEUED, "stopped"
        elif end.code == HELD:
            self._wait(state, holder_of(state.planned.run_dir.lock) or "another process")
        elif end.code < 0 or end.code in _ENDED_BY_SIGNAL:
            number = -end.code if end.code < 0 else end.code - 128
            self._again(state, end.reason or f"killed by {signal.Signals(number).name}")
        else:
            self._fail(state, end.reason or reason_in(state.log))

    def _again(self, state: CellState, reason: str) -> None:
        """It died, by no error of its own."""
        state.deaths += 1
        if state.deaths > DEATHS_ALLOWED:
            self._fail(state, f"{reason}, {state.deaths} times")
            return
        state.state, state.not_before = QUEUED, time.monotonic() + SECONDS_BEFORE_AGAIN
        state.reason = f"again, {state.deaths} of {DEATHS_ALLOWED} times: {reason}"

    def _wait(self, state: CellState, holder: str) -> None:
        state.state, state.holder, state.not_before = QUEUED, holder, time.monotonic() + SECONDS_BEFORE_ASKING

    def _fail(self, state: CellState, reason: str) -> None:
        state.state, state.reason = FAILED, reason

    def _leave(self, display: Display) -> None:
        """Tell the runs to leave, once; end them when the time is over, and then wait for none."""
        running, is_new = self._in(RUNNING), not self._told
        for state in running:
            assert state.running is not None
            if time.monotonic() > self._stop.kill_at:
                state.running.kill()
            elif is_new:
                state.running.terminate()
        if is_new:
            self._told = True
            self._stop.begin_last_resort()
            if running:
                display.say(f"{self._stop.name}: {len(running)} runs save and leave; once more ends them now")
        if time.monotonic() > self._stop.leave_at:
            for state in running:
                state.state, state.reason = QUEUED, "stopped"

    def _seconds_left(self, slots: int) -> float | None:
        now = time.monotonic()
        left = [(state.planned, 0.0) for state in self._in(QUEUED)]
        left += [(state.planned, now - state.began) for state in self._in(RUNNING)]
        return seconds_left(left, seconds_by_kind(self._durations), slots)

    def _is_time(self, what: str, seconds: float) -> bool:
        if time.monotonic() < self._next.get(what, 0):
            return False
        self._next[what] = time.monotonic() + seconds
        return True

    def _results(self, display: Display) -> None:
        """The table with what has finished; never for more than a tenth of the time."""
        self._guarded("states.json", self._write_states, display.say)
        began = time.monotonic()
        if self._stop.number or began < self._next.get("table", 0):
            return
        plots = self._is_time("draw", _DRAW_EVERY)
        self._stop.breaking_off(lambda: self._guarded("table", lambda: self._write_results(plots), display.say))
        took = time.monotonic() - began
        self._next["table"] = time.monotonic() + 9 * took

    def _write_results(self, plots: bool) -> str:
        cells = [state.finished() for state in self._states]
        return write_results(
            self._folder, self._sweep.claim, cells, self._sweep.axes, self._sweep.expected, plots=plots
        )

    def _write_states(self) -> None:
        write_states(self._folder / "states.json", self._states, self._commands)

    def _guarded(self, what: str, do: Callable[[], object], tell: Callable[[str], None]) -> None:
        """Do what the runs can do without; what is wrong with it is told once, as long as it is the same."""
        complaint = ""
        try:
            do()
        except Exception as error:
            complaint = f"no {what}: {type(error).__name__}: {error}"
        if complaint and complaint != self._complaints.get(what):
            tell(complaint)
        self._complaints[what] = complaint

    def _conclude(self) -> int:
        if self._stop.number:
            say(f"stopped by {self._stop.name}: {counts(self._states)}; the same command goes on")
            return self._stop.exit_code
        failed = self._in(FAILED)
        try:
            say(f"\n{self._write_results(plots=True)}")
        finally:  # what happened to the runs is told even if there is no table
            if failed:
                say(f"\n{len(failed)} of {len(self._states)} cells failed; the same command runs them again:")
            for state in failed:
                say(f"  {state.title}: {state.detail()}")
            say(f"\n{counts(self._states)}, in {self._folder}")
        return 1 if failed else 0
