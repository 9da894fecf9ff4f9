"""One run directory, one process: with real processes, killed where they stand."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prunelab.experiment.errors import RunError
from prunelab.experiment.lock import held

# holds the lock with a child that lives on, says so, and waits to be ended
HOLDER = """
import subprocess, sys, time
from pathlib import Path
from prunelab.experiment.lock import held
with held(Path(sys.argv[1])):
    {child}
    print(child, flush=True)
    sys.stdin.read()
"""
BY_EXEC = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid"
BY_FORK = """import os
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"it runs")
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """start(script) -> the process that holds the lock, and the id of its child; both are ended after the test."""
    processes: list[subprocess.Popen[str]] = []
    children: list[int] = []

    def begin(child: str) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", HOLDER.format(child=child), str(tmp_path / "lock")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))
        assert processes[-1].stdout is not None
        children.append(int(processes[-1].stdout.readline()))
        return processes[-1], children[-1]

    yield begin
    for process, child_id in zip(processes, children, strict=True):
        process.kill()
        os.kill(child_id, signal.SIGKILL)  # it has the same output, which `communicate` reads to its end
        process.communicate()


@pytest.mark.parametrize("child", [BY_EXEC, BY_FORK], ids=["exec", "fork"])
def test_another_process_is_kept_out_until_the_first_is_gone(child: str, start: Any, tmp_path: Path) -> None:
    process, child_id = start(child)
    with pytest.raises(RunError) as refused, held(tmp_path / "lock"):
        pass
    assert str(refused.value) == (
        f"the run directory {tmp_path} is held by process {process.pid} on {socket.gethostname()}: "
        "wait for it or stop it"
    )
    process.kill()
    process.wait()
    os.kill(child_id, 0)  # it lives on, and does not have the lock
    with held(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_errors_free_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path / "lock"):
        raise ZeroDivisionError
    with held(tmp_path / "lock"):
        pass


def test_a_file_of_a_dead_process_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on some host with a very long name\n")
    with held(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_without_a_name_in_the_file(start: Any, tmp_path: Path) -> None:
    start(BY_EXEC)
    (tmp_path / "lock").write_text("")
    with pytest.raises(RunError, match="held by another process: wait"), held(tmp_path / "lock"):
        pass


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="cannot be locked here"), held(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()


def test_other_errors_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), held(tmp_path / "nowhere" / "lock"):
        pass
