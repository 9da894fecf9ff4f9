"""A sweep from its first run to its table, through the death of runs, workers and itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from prunelab.experiment.errors import RunError
from prunelab.experiment.lock import held
from prunelab.report.results import write_results
from prunelab.sweep.display import Display
from prunelab.sweep.file import Sweep
from prunelab.sweep.fork_server import Order
from prunelab.sweep.local import End, Engine
from prunelab.sweep.plan import PlannedCell, arguments, command_of, seconds_by_kind, seconds_left, seconds_of
from prunelab.sweep.states import DONE, FAILED, QUEUED, RUNNING, CellState, counts, reason_in, write_states

DEATHS_ALLOWED = 3
SECONDS_BEFORE_AGAIN = 1.0  # what was killed with its worker may hold its directory for a moment
SECONDS_TO_STOP = 6.5  # for runs to save and leave; what is left of ten is for the engine and this process
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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
        self._number = 0  # of the signal that ends the sweep
        self._stop_until, self._told = 0.0, False
        self._durations: list[tuple[PlannedCell, float]] = []
        self._next: dict[str, float] = {}

    def run(self, make_engine: Callable[[int], Engine]) -> int:
        """Returns the exit code: 1 if a cell has failed, 128 + its number after a signal.

        Raises: RunError for a folder that another sweep works in, and what `make_engine` raises.
        """
        (self._folder / "logs").mkdir(parents=True, exist_ok=True)
        with held(self._folder / "lock"):
            self._find_finished()
            left = sum(state.state != DONE for state in self._states)
            print(f"{self._sweep.claim}\n{len(self._states)} cells, {counts(self._states)}", flush=True)
            if left:
                engine = make_engine(left)
                print(f"{engine.name}, threads of each: {self._threads}; logs in {self._folder / 'logs'}", flush=True)
                with Display(self._states) as display, self._signals(display):
                    try:
                        self._loop(engine, display)
                    finally:
                        engine.close()
            self._write_states()
            return self._conclude()

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
            if self._number:
                self._stop(display)
            else:
                self._start(engine, display)
            running = self._in(RUNNING)
            if not running and (self._number or not self._in(QUEUED)):
                return
            if self._is_time("states", _STATES_EVERY):
                self._write_states()
            if self._is_time("show", _SHOW_EVERY):
                display.show(self._seconds_left(engine.slots))
            time.sleep(_LOOK_EVERY)

    def _in(self, state: str) -> list[CellState]:
        return [one for one in self._states if one.state == state]

    def _start(self, engine: Engine, display: Display) -> None:
        """Fill the slots."""
        free = engine.slots - len(self._in(RUNNING))
        for state in self._in(QUEUED):
            ticket = self._ticket_of(state)
            if ticket is not None and ticket.state == FAILED:
                self._fail(state, f"its ticket failed, {ticket.title}")
                display.tell(state)
            elif free > 0 and time.monotonic() >= state.not_before and (ticket is None or ticket.state == DONE):
                place = self._states.index(state)
                order = Order(
                    self._commands[place], self._arguments[place], str(state.log.absolute()), os.getcwd(), self._threads
                )
                state.state, state.running, state.began = RUNNING, engine.start(order), time.monotonic()
                display.tell(state)
                free -= 1

    def _ended(self, state: CellState, end: End) -> None:
        state.running = None
        if end.code == 0:
            try:
                state.records = state.planned.records() or []
            except RunError as error:
                self._fail(state, str(error))
                return
            if not state.records:
                self._fail(state, "it ended without a record")
                return
            state.state, state.reason = DONE, ""
            if not state.deaths:
                self._durations.append((state.planned, time.monotonic() - state.began))
        elif self._number:
            state.state, state.reason = QUEUED, "stopped"
        elif end.code < 0 or end.code in _ENDED_BY_SIGNAL:
            state.deaths += 1
            number = -end.code if end.code < 0 else end.code - 128
            reason = end.reason or f"killed by {signal.Signals(number).name}"
            if state.deaths > DEATHS_ALLOWED:
                self._fail(state, f"{reason}, {state.deaths} times")
                return
            state.state, state.not_before = QUEUED, time.monotonic() + SECONDS_BEFORE_AGAIN
            state.reason = f"again, {state.deaths} of {DEATHS_ALLOWED} times: {reason}"
        else:
            self._fail(state, end.reason or reason_in(state.log))

    def _fail(self, state: CellState, reason: str) -> None:
        state.state, state.reason = FAILED, reason

    def _stop(self, display: Display) -> None:
        """Tell the runs to leave, once; end them when the time is over."""
        running = self._in(RUNNING)
        if running and not self._told:
            display.say(
                f"{signal.Signals(self._number).name}: {len(running)} runs save and leave; once more ends them now"
            )
        for state in running:
            assert state.running is not None
            if time.monotonic() > self._stop_until:
                state.running.kill()
            elif not self._told:
                state.running.terminate()
        self._told = True

    def _seconds_left(self, slots: int) -> float | None:
        left = [state.planned for state in self._in(QUEUED) + self._in(RUNNING)]
        return seconds_left(left, seconds_by_kind(self._durations), slots)

    def _is_time(self, what: str, seconds: float) -> bool:
        if time.monotonic() < self._next.get(what, 0):
            return False
        self._next[what] = time.monotonic() + seconds
        return True

    def _results(self, display: Display) -> None:
        """The table with what has finished; never for more than a tenth of the time."""
        self._write_states()
        began = time.monotonic()
        if self._number or began < self._next.get("table", 0):
            return
        try:
            self._write_results(plots=self._is_time("draw", _DRAW_EVERY))
        except Exception as error:  # the runs go on; at the end it is raised
            display.say(f"no table: {type(error).__name__}: {error}")
        took = time.monotonic() - began
        self._next["table"] = time.monotonic() + 9 * took

    def _write_results(self, plots: bool) -> str:
        cells = [state.finished() for state in self._states]
        return write_results(
            self._folder, self._sweep.claim, cells, self._sweep.axes, self._sweep.expected, plots=plots
        )

    def _write_states(self) -> None:
        write_states(self._folder / "states.json", self._states, self._commands)

    def _conclude(self) -> int:
        if self._number:
            name = signal.Signals(self._number).name
            print(f"stopped by {name}: {counts(self._states)}; the same command goes on", flush=True)
            return 128 + self._number
        print(f"\n{self._write_results(plots=True)}")
        failed = self._in(FAILED)
        if failed:
            print(f"\n{len(failed)} of {len(self._states)} cells failed; the same command runs them again:")
        for state in failed:
            print(f"  {state.title}: {state.detail()}")
        print(f"\n{counts(self._states)}, in {self._folder}", flush=True)
        return 1 if failed else 0

    @contextmanager
    def _signals(self, display: Display) -> Iterator[None]:
        """The first signal ends the sweep, with time for its runs to save; the second ends it at once."""

        def take_note(number: int, frame: FrameType | None) -> None:
            if self._number:
                display.__exit__(None, None, None)
                os._exit(128 + number)  # its servers and their runs end with it
            self._number, self._stop_until = number, time.monotonic() + SECONDS_TO_STOP

        former = {number: signal.getsignal(number) for number in _SIGNALS}
        former = {number: handler for number, handler in former.items() if handler != signal.SIG_IGN}
        for number in former:
            signal.signal(number, take_note)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
