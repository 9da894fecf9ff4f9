"""Runs on Ray: this machine with so many slots, or a cluster. One task for a run; a worker keeps its fork server.

All machines of a cluster need the same files at the same paths: configs, data, the directory of the runs.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from prunelab.experiment.errors import RunError
from prunelab.sweep.fork_server import Order
from prunelab.sweep.local import KILLED, End, Running, Slot

SECONDS_TO_CONNECT = 5.0
SECONDS_TO_JOIN = 60.0
SECONDS_TO_SAVE = 5.0  # of a run that is told to leave
_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")  # Ray sets them for each task
_OBJECT_STORE = 100 * 2**20  # bytes; orders and exit codes are all that goes through it
_slot: Slot | None = None  # of this worker

_JOIN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


class RayEngine:
    """Where Ray finds room.

    address: of a cluster, seen to be reachable (`check_reachable`); None starts Ray on this machine alone, and it ends
    with this process. slots: at most so many runs at a time; None for as many as a cluster has room for. gpus: share of
    a GPU for each run; None for a whole one where there are any. Raises: RunError if there is no room for a run.
    """

    def __init__(
        self, slots: int | None, threads: int, errors: Path, address: str | None = None, gpus: float | None = None
    ) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # or it would call home
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address is None:
            cpus, store = (slots or 1) * threads, _OBJECT_STORE
            ray.init("local", num_cpus=cpus, object_store_memory=store, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
        there = ray.cluster_resources()
        gpus = (1.0 if there.get("GPU") else 0.0) if gpus is None else gpus
        free = room(ray.nodes(), threads, gpus)
        if not free:
            ray.shutdown()
            raise RunError(
                f"no room on any machine for a run of {threads} CPUs and {gpus:g} GPUs among "
                f"{int(there.get('CPU', 0))} CPUs and {there.get('GPU', 0):g} GPUs"
            )
        self.slots = min(slots or free, free)
        share = f", {gpus:g} GPUs each" if gpus else ""
        self.name = f"Ray {address or 'on this machine'}, {self.slots} runs at a time{share}"
        self._ray, self._errors = ray, errors
        self._owner = None if address else os.getpid()
        self._task = ray.remote(make_run).options(num_cpus=threads, num_gpus=gpus, max_retries=0)

    def start(self, order: Order) -> Running:
        return _RunningTask(self._ray, self._task.remote(order, str(self._errors), self._owner))

    def close(self) -> None:
        self._ray.shutdown()


class _RunningTask:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def poll(self) -> End | None:
        if not self._ray.wait([self._reference], timeout=0)[0]:
            return None
        exceptions = self._ray.exceptions
        try:
            end: End = self._ray.get(self._reference)
            return end
        except exceptions.RayTaskError as error:
            return End(1, " ".join(str(error.cause).split()))
        except exceptions.RayError as error:
            return End(KILLED, f"its worker died: {type(error).__name__}")

    def terminate(self) -> None:
        self._ray.cancel(self._reference)

    def kill(self) -> None:
        self._ray.cancel(self._reference, force=True)


def make_run(order: Order, errors: str, owner: int | None) -> End:
    """The task: make the run `order` in this worker's fork server.

    owner: the sweep's process, if it is on this machine. Should it die, Ray ends its workers within seconds; the run
    ends at once.
    """
    global _slot
    _slot = _slot or Slot(Path(errors))
    parent = os.getppid()
    devices = {key: os.environ[key] for key in _DEVICES if key in os.environ}
    running = _slot.start(replace(order, environment={**order.environment, **devices}))
    try:
        while (end := running.poll()) is None:
            if os.getppid() != parent or (owner is not None and _is_gone(owner)):
                running.kill()
                os._exit(1)
            time.sleep(0.1)
        return end
    except KeyboardInterrupt:  # what ray.cancel raises
        _slot.terminate()
        until = time.monotonic() + SECONDS_TO_SAVE
        while running.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        _slot.close()
        raise


def room(nodes: Sequence[Mapping[str, Any]], threads: int, gpus: float) -> int:
    """How many runs fit at a time, each on one of the machines that `ray.nodes()` tells of."""
    needs = [("CPU", threads), *([("GPU", gpus)] if gpus else [])]
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(there.get(what, 0) / need + 1e-9) for what, need in needs) for there in alive)


def check_reachable(address: str) -> None:
    """Raise RunError if no Ray cluster answers at `address`, within a minute.

    Ray itself would wait for much longer, and end this process when it gives up; so another one tries first.
    """
    if address != "auto":
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if not (colon and host and port.isdecimal()):
            raise RunError(f"--address: expected HOST:PORT, ray://HOST:PORT or auto, got {address}")
        try:
            socket.create_connection((host, int(port)), timeout=SECONDS_TO_CONNECT).close()
        except (OSError, OverflowError) as error:
            raise RunError(f"no Ray cluster can be reached at {address}: {error}") from None
    try:
        command = [sys.executable, "-c", _JOIN, address]
        found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_JOIN, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"no Ray cluster answers at {address} within {SECONDS_TO_JOIN:.0f} seconds") from None
    if found.returncode:
        errors = re.findall(r"^[\w.]+Error: .*", found.stderr, re.MULTILINE) or [f"exit code {found.returncode}"]
        why = next((error for error in errors if error.startswith("ray.")), errors[-1])  # Ray's own is the cause
        raise RunError(f"no Ray cluster can be reached at {address}: {shorten(why, 300)}")


def num_processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
