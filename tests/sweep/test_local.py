"""Fork servers on this machine: what they end with, and which GPU they are given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunelab.sweep import local
from prunelab.sweep.fork_server import Order
from prunelab.sweep.local import LocalEngine, visible_gpus


def test_a_server_whose_parent_was_gone_before_it_could_look_makes_no_run() -> None:
    # such a server has another parent, init, than the one that it was told of
    command = [sys.executable, "-m", "prunelab.sweep.fork_server", str(os.getppid())]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")


@pytest.mark.parametrize(
    ("count", "named", "names"),
    [(0, None, []), (0, "", []), (2, None, ["0", "1"]), (2, "3,5", ["3", "5"]), (1, "GPU-ab,7", ["GPU-ab"])],
)
def test_gpus_by_their_names(count: int, named: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == names


@pytest.mark.parametrize(
    ("gpus", "devices"), [(["4", "6"], ["4", "6", "4"]), (["4"], [None, None, None]), ([], [None, None, None])]
)
def test_of_several_gpus_each_slot_has_one(
    gpus: list[str], devices: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []

    class Taken:
        is_free = True

        def __init__(self, errors: Path) -> None:
            pass

        def start(self, order: Order) -> None:
            self.is_free = False
            orders.append(order)

    monkeypatch.setattr(local, "Slot", Taken)
    monkeypatch.setattr(local, "visible_gpus", lambda: gpus)
    engine = LocalEngine(3, Path("errors"))
    for _ in devices:
        engine.start(Order("", [], "log", ".", 1, {"OTHER": "kept"}))
    assert [order.environment.get("CUDA_VISIBLE_DEVICES") for order in orders] == devices
    assert all(order.environment["OTHER"] == "kept" for order in orders)
