"""A run that another process makes: train.py says that it may come later, and a sweep waits for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunelab import cli
from prunelab.experiment.lock import held, holder_of
from prunelab.sweep import drive
from prunelab.sweep.file import read_sweep
from prunelab.sweep.fork_server import HELD, Order
from prunelab.sweep.local import End
from prunelab.sweep.plan import PlannedCell, plan

from .pretended import Engine, Pretended, Written, run, states

TWO = "{pruning.density: [0.5, 0.2]}"


@pytest.fixture
def first(here: Path) -> PlannedCell:
    Path("many.yaml").write_text(f"base: tiny.yaml\ngrid: {TWO}\n")
    cell = plan(read_sweep(Path("many.yaml")), "runs")[0]
    cell.run_dir.make()
    return cell


@contextmanager
def another_process(lock: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """Its id, while it holds the lock, and what makes it end."""
    (ready, is_ready), (wait, end) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(end)
            with held(lock):
                os.write(is_ready, b".")
                os.read(wait, 1)
        finally:
            os._exit(0)
    os.close(is_ready)
    assert os.read(ready, 1)
    ended: list[int] = []

    def release() -> None:
        if not ended:
            os.close(end)
            ended.append(os.waitpid(child, 0)[0])

    try:
        yield child, release
    finally:
        release()
        os.close(ready)
        os.close(wait)


def test_who_holds_a_directory(first: PlannedCell) -> None:
    lock = first.run_dir.lock
    assert holder_of(lock) is None
    with another_process(lock) as (process, release):
        assert (holder_of(lock) or "").startswith(f"process {process} on ")
        release()
        assert holder_of(lock) is None


def test_train_py_says_by_its_exit_code_that_the_run_may_come_later(
    first: PlannedCell, capsys: pytest.CaptureFixture[str]
) -> None:
    with another_process(first.run_dir.lock) as (process, _):
        assert cli.main([*first.cell.words], held=HELD) == HELD
        assert f"is held by process {process} on " in capsys.readouterr().err


def test_a_sweep_waits_for_the_run_of_another_process(
    first: PlannedCell, written: Written, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drive, "SECONDS_BEFORE_ASKING", 0.0)
    engine = Engine({})
    start = engine.start
    with another_process(first.run_dir.lock) as (process, release):

        def second_frees_the_first(order: Order) -> Pretended:
            release()
            return start(order)

        engine.start = second_frees_the_first  # type: ignore[method-assign]
        assert run(engine, TWO) == 0
    assert engine.densities == ["0.2", "0.5"]
    assert f"queued 1 of 2, pruning.density 0.5: waits for process {process} on " in capsys.readouterr().out


def test_what_was_taken_between_asking_and_starting_is_no_death(
    here: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "SECONDS_BEFORE_ASKING", 0.0)
    engine = Engine({"0.5": [*[End(HELD)] * 5, End(0)]})
    assert run(engine, "{pruning.density: [0.5]}") == 0
    assert len(engine.orders) == 6
    assert states() == [("done", "test accuracy 50.0 %")]
