"""Runs on this machine, each at a slot: a fork server that makes one run at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from prunelab.sweep.fork_server import Order

KILLED = -int(signal.SIGKILL)
SECONDS_TO_END = 1.0


@dataclass(frozen=True)
class End:
    """Of a run's process. code: its exit code; below 0 the signal that killed it. reason: where its log has none."""

    code: int
    reason: str = ""


class Running(Protocol):
    """A run that has been ordered."""

    def poll(self) -> End | None:
        """How it ended, None while it has not."""

    def terminate(self) -> None:
        """Tell it to save and leave; does not wait."""

    def kill(self) -> None:
        """End it at once; does not wait."""


class Engine(Protocol):
    """Where runs are made. name: in words. slots: how many at a time."""

    name: str
    slots: int

    def start(self, order: Order) -> Running:
        """Begin a run; the caller sees to it that a slot is free."""

    def close(self) -> None:
        """End whatever is left of it."""


class Slot:
    """One fork server; it is started with the first run, and anew if it died."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        self._server: subprocess.Popen[bytes] | None = None
        self._answers = b""
        self._is_busy = False

    @property
    def is_free(self) -> bool:
        return not self._is_busy

    def start(self, order: Order) -> Slot:
        if self._server is None or self._server.poll() is not None:
            self._server = self._started(order.threads)
        assert self._server.stdin is not None
        self._answers, self._is_busy = b"", True
        with suppress(BrokenPipeError):  # poll() sees that it died
            self._server.stdin.write(order.line())
            self._server.stdin.flush()
        return self

    def poll(self) -> End | None:
        if not self._read():
            self.close()  # its end is the run's
            return End(KILLED, f"its server died, see {self._errors}")
        pid_and_code = self._answers.split(b"\n")[:-1]
        if len(pid_and_code) < 2:
            return None
        self._is_busy = False
        return End(int(pid_and_code[1]))

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()
            with suppress(subprocess.TimeoutExpired):  # where the disk does not answer, a kill waits for it
                self._server.wait(SECONDS_TO_END)
            for pipe in (self._server.stdin, self._server.stdout):
                with suppress(BrokenPipeError):
                    assert pipe is not None
                    pipe.close()
        self._server, self._is_busy = None, False

    def _send(self, number: signal.Signals) -> None:
        """Send it to the run, or to the server if that has not begun it."""
        assert self._server is not None
        if not self._read():
            return
        pid, answered, code = self._answers.partition(b"\n")
        with suppress(ProcessLookupError):
            if not answered:
                self._server.send_signal(number)
            elif not code:
                os.kill(int(pid), number)

    def _read(self) -> bool:
        """Take in what the server has answered; whether it is there still."""
        assert self._server is not None
        assert self._server.stdout is not None
        with suppress(BlockingIOError):
            while answer := os.read(self._server.stdout.fileno(), 4096):
                self._answers += answer
            return False
        return True

    def _started(self, threads: int) -> subprocess.Popen[bytes]:
        with self._errors.open("ab") as errors:
            server = subprocess.Popen(
                [sys.executable, "-m", "prunelab.sweep.fork_server", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the sweep, which tells the runs
                env=environment(threads),
            )
        assert server.stdout is not None
        os.set_blocking(server.stdout.fileno(), False)
        return server


class LocalEngine:
    """Runs on this machine, without any other program; of several GPUs each slot has one, as on Ray."""

    def __init__(self, slots: int, errors: Path) -> None:
        self.name = "one run at a time" if slots == 1 else f"{slots} runs at a time"
        self.slots = slots
        self._slots = [Slot(errors) for _ in range(slots)]
        gpus = visible_gpus()
        self._devices = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if len(gpus) > 1 else {} for i in range(slots)]

    def start(self, order: Order) -> Running:
        place = next(i for i, slot in enumerate(self._slots) if slot.is_free)
        return self._slots[place].start(replace(order, environment={**order.environment, **self._devices[place]}))

    def close(self) -> None:
        for slot in self._slots:
            slot.close()


def visible_gpus() -> list[str]:
    """Of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


def environment(threads: int) -> dict[str, str]:
    """Of a fork server. As many threads in all libraries: the order of additions, and so the last digits, depends on
    it. Looking for GPUs must not start CUDA, which does not survive a fork."""
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(libraries, str(threads)), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
