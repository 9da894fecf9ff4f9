"""What the driver decides when runs end one way or another, on an engine that only pretends to run them."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prunelab.experiment.errors import RunError
from prunelab.experiment.lock import held
from prunelab.sweep import drive, stopping
from prunelab.sweep.drive import Driver
from prunelab.sweep.file import read_sweep
from prunelab.sweep.fork_server import Order
from prunelab.sweep.local import End

from . import pretended
from .pretended import RECORD, Engine, Pretended, Written, run, states


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
    monkeypatch.setattr(pretended, "write_record", lambda cell: None)
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
    monkeypatch.setattr(stopping, "SECONDS_TO_STOP", 0.2)
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


def with_signals_at_start(engine: Engine, place: int, *numbers: signal.Signals) -> Engine:
    """The signals come while the engine starts the run at `place`, counted from 1."""
    start = engine.start

    def with_signals(order: Order) -> Pretended:
        started = start(order)
        for number in numbers if len(engine.orders) == place else ():
            os.kill(os.getpid(), number)
        return started

    engine.start = with_signals  # type: ignore[method-assign]
    return engine


def test_what_cannot_be_killed_is_left(here: Path, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("SECONDS_TO_STOP", "SECONDS_TO_DIE"):
        monkeypatch.setattr(stopping, constant, 0.1)
    for way in ("terminate", "kill"):
        monkeypatch.setattr(Pretended, way, lambda run, way=way: run.told.append(way))
    engine = with_signals_at_start(Engine({"0.5": [None]}), 1, signal.SIGTERM)
    assert run(engine, "{pruning.density: [0.5]}") == 143
    assert list(dict.fromkeys(engine.runs[0].told)) == ["terminate", "kill"]
    assert engine.most == -1  # closed
    assert states() == [("queued", "stopped")]


def test_a_signal_does_not_wait_for_pictures(here: Path, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bool] = []

    def draws(*_: Any, plots: bool, **__: Any) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        drawn.append(plots)
        return ""

    monkeypatch.setattr(drive, "write_results", draws)
    engine = Engine({"0.2": [None]})
    assert run(engine) == 143
    assert (engine.densities, drawn) == (["0.5", "0.2"], [])
    assert engine.runs[1].told == ["terminate"]


def test_a_terminal_that_closes_says_so_twice(here: Path, written: Written) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        engine = with_signals_at_start(Engine({"0.5": [None]}), 1, signal.SIGHUP, signal.SIGHUP)
        assert run(engine, "{pruning.density: [0.5]}") == 129
    finally:
        signal.signal(signal.SIGHUP, former)
    assert engine.runs[0].told == ["terminate"]


@pytest.mark.parametrize("number", [None, signal.SIGINT])
def test_runs_go_on_and_are_told_to_leave_though_nobody_reads_what_is_said(
    number: signal.Signals | None, here: Path, written: Written
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    if (child := os.fork()) == 0:
        code = 99
        try:
            os.dup2(writer, 1)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            engine = Engine({} if number is None else {"0.5": [None]})
            code = run(with_signals_at_start(engine, 2, *([] if number is None else [number])))
            code = code if number is None or engine.runs[0].told == ["terminate"] else 98
        finally:
            os._exit(code)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if number is None else 130)
    assert [state for state, _ in states()].count("done") == (3 if number is None else 1)


@pytest.mark.parametrize("times", [1, 4])
def test_a_run_that_the_system_could_not_start_begins_again_three_times(
    times: int, here: Path, written: Written
) -> None:
    engine, refused = Engine({}), [OSError(errno.ENOMEM, "no memory")] * times
    start = engine.start

    def refuses(order: Order) -> Pretended:
        if refused and "0.5" in order.arguments:
            raise refused.pop()
        return start(order)

    engine.start = refuses  # type: ignore[method-assign]
    assert run(engine) == (times == 4)
    assert sorted(engine.densities) == ["0.1", "0.2", "0.5"][: 3 - (times == 4)]
    detail = states()[0][1]
    assert ("it could not be started: [Errno 12] no memory, 4 times" in detail) == (times == 4)


def test_a_full_disk_stops_no_run(
    here: Path, written: Written, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(drive, "write_states", full)
    monkeypatch.setattr(drive.Display, "show", full)
    assert run(Engine({})) == 0
    out = capsys.readouterr().out
    assert out.count("no states.json: OSError: [Errno 28] No space left") == 1
    assert out.count("no live table: OSError") == 1
    assert out.endswith("3 done, in runs/sweeps/many\n")


def test_a_run_out_of_time_is_done(here: Path, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECORD, "out_of_time", True)
    monkeypatch.setitem(RECORD, "epochs", 1)
    assert run(Engine({}), "{pruning.density: [0.5]}", "{trainer.max_time: '00:00:00:05'}") == 0
    assert states() == [("done", "test accuracy 50.0 %")]


def test_failures_are_told_though_there_is_no_table(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise ValueError("no table")

    monkeypatch.setattr(drive, "write_results", fails)
    with pytest.raises(ValueError, match="no table"):
        run(Engine({"0.2": [End(2, "no place")]}))
    out = capsys.readouterr().out
    assert "1 of 3 cells failed; the same command runs them again:\n  pruning.density 0.2: no place, see " in out
    assert out.endswith("\n2 done, 1 failed, in runs/sweeps/many\n")


def test_a_folder_of_another_file_is_left_alone(here: Path, written: Written) -> None:
    assert run(Engine({})) == 0
    moved = Path("many.yaml").rename(here / "elsewhere.yaml")
    other = here / "other"
    other.mkdir()
    file = moved.rename(other / "many.yaml")
    driver = Driver(read_sweep(file), [], Path("runs/sweeps/many"), 1, "runs")
    driver._take_folder()  # its own file was moved
    Path("many.yaml").write_text(file.read_text())
    with pytest.raises(RunError, match=f"has the results of {other}/many.yaml: rename the sweep"):
        run(Engine({}))
