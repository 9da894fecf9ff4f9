"""What the driver decides when runs end one way or another, on an engine that only pretends to run them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prunelab.experiment.errors import RunError
from prunelab.experiment.lock import held
from prunelab.report.results import FinishedCell
from prunelab.sweep import drive
from prunelab.sweep.drive import Driver
from prunelab.sweep.file import read_sweep
from prunelab.sweep.fork_server import Order
from prunelab.sweep.local import End
from prunelab.sweep.plan import PlannedCell, plan

RECORD = {
    "max_epochs": 2,
    "epochs": 2,
    "out_of_time": False,
    "test_accuracy": 0.5,
    "seconds_scoring": 1.0,
    "seconds_training": 2.0,
}


class Pretended:
    """A run that ends as it is told to, or when it is told to leave."""

    def __init__(self, end: End | None, at_end: Callable[[], None]) -> None:
        self.end, self.at_end, self.told = end, at_end, []

    def poll(self) -> End | None:
        if self.end is not None:
            self.at_end()
        return self.end

    def terminate(self) -> None:
        self.told.append("terminate")
        self.end = End(143)

    def kill(self) -> None:
        self.told.append("kill")
        self.end = End(-9)


class Engine:
    """ends: density, as it is spelled on the command line, -> how its run ends, time after time."""

    name = "pretended"

    def __init__(self, ends: dict[str, list[End | None]], slots: int = 2) -> None:
        self.ends, self.slots = ends, slots
        self.cells: list[PlannedCell] = []
        self.orders: list[Order] = []
        self.runs: list[Pretended] = []
        self.most = self.at_once = 0

    def start(self, order: Order) -> Pretended:
        self.orders.append(order)
        name = order.arguments[order.arguments.index("--pruning.density") + 1]
        cell = next(cell for cell in self.cells if str(cell.cell.values["pruning.density"]) == name)
        end = self.ends.get(name, [End(0)]).pop(0)
        self.at_once += 1
        self.most = max(self.most, self.at_once)

        def at_end() -> None:
            self.at_once -= 1
            if run.end == End(0):
                write_record(cell)

        run = Pretended(end, at_end)
        self.runs.append(run)
        return run

    def close(self) -> None:
        self.most = -self.most  # seen to be closed

    @property
    def densities(self) -> list[str]:
        return [order.arguments[order.arguments.index("--pruning.density") + 1] for order in self.orders]


class Written:
    def __init__(self) -> None:
        self.calls: list[tuple[Sequence[FinishedCell], Sequence[str], bool]] = []

    def __call__(
        self, folder: Path, title: str, cells: Any, axes: Any, expected: Any = (), *, plots: bool = True
    ) -> str:
        self.calls.append((cells, axes, plots))
        return f"the table of {title}"


def write_record(cell: PlannedCell) -> None:
    level = cell.run_dir.level(0)
    level.path.mkdir(parents=True, exist_ok=True)
    level.record.write_text(json.dumps(RECORD))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    found = Written()
    monkeypatch.setattr(drive, "write_results", found)
    monkeypatch.setattr(drive, "SECONDS_BEFORE_AGAIN", 0.0)
    return found


def run(engine: Engine, grid: str = "{pruning.density: [0.5, 0.2, 0.1]}", set_: str = "{}") -> int:
    Path("many.yaml").write_text(f"# Its claim\nbase: tiny.yaml\nset: {set_}\ngrid: {grid}\n")
    sweep = read_sweep(Path("many.yaml"))
    engine.cells = plan(sweep, "runs")
    return Driver(sweep, engine.cells, Path("runs/sweeps/many"), 1, "runs").run(lambda most: engine)


def states() -> list[tuple[str, str]]:
    return [(cell["state"], cell["detail"]) for cell in json.loads(Path("runs/sweeps/many/states.json").read_text())]


def test_all_cells_run_slot_by_slot_and_once(here: Path, written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine({})
    assert run(engine) == 0
    assert engine.densities == ["0.5", "0.2", "0.1"]
    assert engine.most == -2  # and closed
    assert states() == [("done", "test accuracy 50.0 %")] * 3
    out = capsys.readouterr().out
    assert out.startswith("Its claim\n3 cells, 3 queued\npretended, threads of each: 1; logs in ")
    assert "done 2 of 3, pruning.density 0.2: test accuracy 50.0 %" in out
    assert out.endswith("\nthe table of Its claim\n\n3 done, in runs/sweeps/many\n")
    cells, axes, plots = written.calls[-1]
    assert (axes, plots) == (("pruning.density",), True)
    assert [(cell.values["pruning.density"], cell.records) for cell in cells] == [
        (density, [RECORD]) for density in (0.5, 0.2, 0.1)
    ]

    again = Engine({})
    assert run(again) == 0
    assert (again.orders, again.most) == ([], 0)  # there was no engine


def test_a_failed_cell_stops_no_other(here: Path, written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine({"0.5": [End(1)], "0.2": [End(2, "no place")]})
    log = Path("runs/sweeps/many/logs")
    log.mkdir(parents=True)
    assert run(engine) == 1
    assert len(engine.orders) == 3
    (first, why), second, third = states()
    assert first == "failed"
    assert why.startswith("no log: No such file or directory, see runs/sweeps/many/logs/tiny-magnitude-d0.5-s0-")
    assert second[1].startswith("no place, see ")
    assert third[0] == "done"
    out = capsys.readouterr().out
    assert "2 of 3 cells failed; the same command runs them again:\n  pruning.density 0.5: no log" in out
    assert [cell.missing for cell in written.calls[-1][0]][1:] == ["failed: no place", "not finished"]
    assert run(Engine({})) == 0


def test_the_last_error_of_the_log_is_the_reason(here: Path, written: Written) -> None:
    engine = Engine({"0.5": [End(1)]})
    start = engine.start

    def log(order: Order) -> Pretended:
        Path(order.log).write_text("$ python train.py\nValueError: it is so\nthe end\n")
        return start(order)

    engine.start = log  # type: ignore[method-assign]
    assert run(engine, "{pruning.density: [0.5]}") == 1
    assert states()[0][1].startswith("ValueError: it is so, see ")


def test_what_is_killed_begins_again_three_times(here: Path, written: Written) -> None:
    engine = Engine({"0.5": [End(-9), End(143), End(-11), End(0)], "0.2": [End(-9, "its worker died")] * 4})
    assert run(engine) == 1
    assert sorted(engine.densities) == ["0.1", *["0.2"] * 4, *["0.5"] * 4]
    assert states()[0] == ("done", "test accuracy 50.0 %")
    assert states()[1][1].startswith("its worker died, 4 times, see ")


def test_a_run_without_a_record_has_failed(here: Path, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "write_record", lambda cell: None)
    assert run(Engine({}), "{pruning.density: [0.5]}") == 1
    assert states()[0][1].startswith("it ended without a record, see ")


def test_a_table_that_fails_stops_nothing_before_the_end(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise KeyError("column")

    monkeypatch.setattr(drive, "write_results", fails)
    with pytest.raises(KeyError, match="column"):
        run(Engine({}))
    assert [state for state, _ in states()] == ["done"] * 3
    assert "no table: KeyError: 'column'" in capsys.readouterr().out


def test_a_control_comes_after_its_ticket(here: Path, written: Written) -> None:
    engine = Engine({"0.5": [None, End(0)]})
    start = engine.start

    def on_start(order: Order) -> Pretended:
        assert ("reinit" in order.arguments) == bool(engine.orders)
        started = start(order)
        started.end = End(0) if engine.orders[1:] else End(1)
        return started

    engine.start = on_start  # type: ignore[method-assign]
    grid, levels = (
        "{control: [reinit, null], pruning.density: [0.5]}",
        "{tickets.levels: 1, tickets.dense_first: false}",
    )
    assert run(engine, grid, levels) == 1
    (control, why), (ticket, _) = states()
    assert (control, ticket) == ("failed", "failed")
    assert why.startswith("its ticket failed, control null, pruning.density 0.5")
    assert len(engine.orders) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_runs_leave_and_begins_no_other(
    number: signal.Signals, here: Path, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine({"0.5": [None], "0.2": [None]})
    start = engine.start

    def second_brings_the_signal(order: Order) -> Pretended:
        started = start(order)
        if len(engine.orders) == 2:
            os.kill(os.getpid(), number)
        return started

    engine.start = second_brings_the_signal  # type: ignore[method-assign]
    before = signal.getsignal(number)
    assert run(engine) == 128 + number
    assert signal.getsignal(number) == before
    assert [run.told for run in engine.runs] == [["terminate"]] * 2
    assert engine.most == -2  # closed
    out = capsys.readouterr().out
    assert f"{number.name}: 2 runs save and leave; once more ends them now" in out
    assert out.endswith(f"stopped by {number.name}: 3 queued; the same command goes on\n")


def test_what_does_not_leave_is_killed(here: Path, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "SECONDS_TO_STOP", 0.2)
    monkeypatch.setattr(Pretended, "terminate", lambda run: run.told.append("terminate"))
    engine = Engine({"0.5": [None]})
    start = engine.start

    def with_signal(order: Order) -> Pretended:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(order)

    engine.start = with_signal  # type: ignore[method-assign]
    assert run(engine, "{pruning.density: [0.5]}") == 143
    assert engine.runs[0].told == ["terminate", "kill"]


def test_one_sweep_at_a_time_in_a_folder(here: Path, written: Written) -> None:
    folder = Path("runs/sweeps/many")
    folder.mkdir(parents=True)
    with held(folder / "lock"):
        if (child := os.fork()) == 0:
            code = 1
            try:
                run(Engine({}))
            except RunError as error:
                code = 0 if "is held by process" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
