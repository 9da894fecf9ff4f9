"""Processes that end with those that started them: real ones, killed where they stand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prunelab.launcher import first_process, is_started_again, let_the_first_speak, starting_others, under_torchrun

SRC = Path(__file__).parents[1] / "src"
PATIENCE = 10.0
# a first process that starts another, which says that it runs and waits without end
FIRST = """
import os, subprocess, sys
sys.path.insert(0, {src!r})
from prunelab.launcher import starting_others
{prepare}
with starting_others():
    other = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={{**os.environ, "LOCAL_RANK": "1"}})
    other.wait()
"""
OTHER = """
import os, sys, time
sys.path.insert(0, {src!r})
import prunelab.launcher as launcher
{prepare}
launcher.end_with_launcher()
print(os.getpid(), flush=True)
while True:
    time.sleep(0.1)
"""
NO_KERNEL = "launcher._killed_by_kernel = lambda: False"  # as on other systems than Linux
TORCHRUN = "os.environ['TORCHELASTIC_RUN_ID'] = 'none'"


@pytest.fixture
def pair() -> Iterator[list[subprocess.Popen[str]]]:
    """What is started here is ended with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start(pair: list[subprocess.Popen[str]], first: str = "", other: str = "") -> tuple[subprocess.Popen[str], int]:
    """The first process, and the id of the other, which runs. They share the output, which ends with both."""
    words = [FIRST.format(src=str(SRC), prepare=first), OTHER.format(src=str(SRC), prepare=other)]
    pair.append(
        subprocess.Popen([sys.executable, "-c", *words], stdout=subprocess.PIPE, text=True, start_new_session=True)
    )
    assert pair[0].stdout is not None
    return pair[0], int(pair[0].stdout.readline())


@pytest.mark.parametrize("other", ["", NO_KERNEL], ids=["kernel", "thread"])
@pytest.mark.parametrize("first", ["", TORCHRUN], ids=["first", "torchrun"])
def test_killed_with_the_one_that_started_it(first: str, other: str, pair: list[subprocess.Popen[str]]) -> None:
    process, _ = start(pair, first, other)
    process.kill()
    process.communicate(timeout=PATIENCE)  # to the end of the output that both have


@pytest.mark.parametrize("other", ["", NO_KERNEL], ids=["kernel", "thread"])
def test_ends_if_the_first_was_gone_before(other: str, pair: list[subprocess.Popen[str]]) -> None:
    wait = "parent = os.getppid()\nprint(os.getpid(), flush=True)\nwhile os.getppid() == parent: time.sleep(0.01)"
    process, _ = start(pair, other=f"{wait}\n{other}")
    process.kill()
    rest, _ = process.communicate(timeout=PATIENCE)
    assert rest == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_other_is_for_the_first(number: signal.Signals, pair: list[subprocess.Popen[str]]) -> None:
    """Which it ends by here."""
    process, other = start(pair)
    os.kill(other, number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -number


def test_nobody_started_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("LOCAL_RANK", "RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(key, raising=False)
    assert first_process() is None
    assert not under_torchrun()
    with starting_others():
        monkeypatch.setenv("LOCAL_RANK", "0")  # as Lightning does in the first process
        assert first_process() is None
        monkeypatch.setattr(os, "getpid", lambda: -1)  # in another one
        assert first_process() == int(os.environ["PRUNELAB_FIRST_PROCESS"])
    assert "PRUNELAB_FIRST_PROCESS" not in os.environ


def test_one_that_was_started_does_not_take_the_place_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("PRUNELAB_FIRST_PROCESS", "17")
    with starting_others():
        assert first_process() == 17
    assert first_process() == 17


def test_the_first_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.delenv("RANK", raising=False)
    let_the_first_speak()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    monkeypatch.setenv("RANK", "0")
    let_the_first_speak()
    assert not waited
    monkeypatch.setenv("RANK", "1")
    let_the_first_speak()
    assert len(waited) == 1


@pytest.mark.parametrize("key", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_started_again(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, again in (("0", False), ("2", True)):
        monkeypatch.setenv(key, count)
        assert is_started_again() is again
