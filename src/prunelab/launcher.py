"""The processes of one run, as far as their beginning and their end go: none of them outlives the one that started it.

A run on several devices is several processes. Lightning lets the first one start the others by the same command; under
torchrun an agent starts them all. Should whoever started them die, even by SIGKILL, nothing tells them so until their
next collective, and there may be none for minutes, as while they score. So each of them asks the kernel to be killed at
that moment (Linux), or looks for its parent twice a second (elsewhere). In the other direction, a signal to one of
those that the first process has started is meant for the run, and the first process gets it.

SLURM and MPI end the processes of a job themselves. Imports nothing heavy: this is what train.py does first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_FIRST = "PRUNELAB_FIRST_PROCESS"  # its id, for the processes that it starts
_PR_SET_PDEATHSIG = 1
_SECONDS_OF_THE_FIRST = 1.0
_SECONDS_TO_SPEAK = 3.0


def first_process() -> int | None:
    """The id of the first process of the run, if it has started this one; None under any other launcher, or none."""
    first = int(os.environ.get(_FIRST, "0"))
    if not first or "LOCAL_RANK" not in os.environ or under_torchrun() or first == os.getpid():
        return None
    return first


def under_torchrun() -> bool:
    """Whether torchrun's agent is what has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_started_again() -> bool:
    """Whether a launcher has started the same command before, and starts it again after a failure or a requeue."""
    return any(os.environ.get(key, "0") != "0" for key in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


@contextmanager
def starting_others() -> Iterator[None]:
    """The processes that this one starts for its run know who it is."""
    if "LOCAL_RANK" in os.environ:  # it was started itself
        yield
        return
    os.environ[_FIRST] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_FIRST, None)


def end_with_launcher() -> None:
    """From now on this process ends when the one that has started it does; nothing happens if that is none of ours.

    On Linux it is killed when the thread that has started it ends, in which Lightning and torchrun wait for its end.
    SIGTERM, SIGINT and SIGUSR1, unless something handles them, go to the first process, if that has started this one.
    """
    launcher = os.getppid() if under_torchrun() else first_process()
    if launcher is None:
        return
    end_with(launcher)
    if first_process() is not None and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, hand_to_the_first)


def end_with(parent: int) -> None:
    """From now on this process ends when its `parent` does, or the thread of it that has started this one (Linux)."""
    if not _killed_by_kernel():
        _look_for(parent)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def hand_to_the_first(number: int, frame: FrameType | None = None) -> None:
    """Send the signal to the first process, which ends the run, and this one with it.

    A moment later: where all have got the signal, the first ends meanwhile, and is not told twice.
    """
    time.sleep(_SECONDS_OF_THE_FIRST)
    with suppress(ProcessLookupError):
        if (first := first_process()) is not None:
            os.kill(first, number)


def let_the_first_speak() -> None:
    """Wait a moment, in a process that others started with it and that fails.

    What fails here mostly fails in all of them: the first process says so, and its end is the end of this one. If it
    is this one alone, it speaks after the moment.
    """
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    if rank > 0 and (under_torchrun() or first_process() is not None):
        time.sleep(_SECONDS_TO_SPEAK)


def _killed_by_kernel() -> bool:
    if sys.platform != "linux":
        return False
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl is not None and prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)) == 0


def _look_for(launcher: int) -> None:
    name = "end-with-launcher"

    def look() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    if all(thread.name != name for thread in threading.enumerate()):
        threading.Thread(target=look, name=name, daemon=True).start()
