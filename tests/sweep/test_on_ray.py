"""Sweeps on Ray: the results of those without, through the death of workers and of the sweep; nothing is left."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from prunelab.experiment.errors import RunError
from prunelab.sweep import on_ray

from .conftest import Command
from .slow_sweeps import Sweeping


def test_ray_gives_the_results_of_a_sweep_without_it(whole: Command, sweeping: Sweeping) -> None:
    killed = sweeping("ray", "two.yaml", "--slots", "1")
    killed.until(lambda: sweeping.checkpoints("ray"))
    killed.send(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    killed.until(lambda: not killed.runs())  # an agent of Ray's outlives them by a minute

    again = sweeping("ray", "two.yaml", "--engine", "ray", "--slots", "2")
    worker, *_ = again.until(again.runs)[0]
    os.kill(worker, signal.SIGKILL)
    assert again.end() == 0, again.text
    assert "Ray on this machine, 2 runs at a time, threads of each: 1" in again.text
    assert "of 3 times: its worker died" in again.text
    again.until(lambda: not again.processes())
    killed.until(lambda: not killed.processes())

    assert sweeping.results("ray") == sweeping.results("whole")
    assert len(sweeping.results("ray")) == 2


@pytest.fixture
def silent() -> Iterator[str]:
    """An address where somebody listens who never says a word."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("address", ["nonsense", "here:port", ":80", "ray://somewhere"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(RunError, match="--address: expected HOST:PORT"):
        on_ray.check_reachable(address)


def test_an_address_where_nothing_listens() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(RunError, match=f"no Ray cluster can be reached at {address}: .*refused"):
        on_ray.check_reachable(address)


def test_an_address_where_no_ray_answers(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "SECONDS_TO_JOIN", 0.2)
    with pytest.raises(RunError, match=f"no Ray cluster answers at {silent} within"):
        on_ray.check_reachable(silent)


@pytest.mark.parametrize(("threads", "gpus", "slots"), [(1, 0, 10), (4, 0, 1), (3, 0, 3), (1, 1, 2), (1, 0.1, 7)])
def test_a_run_fits_on_one_machine(threads: int, gpus: float, slots: int) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 7.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 3.0}},
        {"Alive": True, "Resources": {"GPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert on_ray.room(nodes, threads, gpus) == slots
