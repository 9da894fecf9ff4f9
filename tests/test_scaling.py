"""The arithmetic of benchmarks/scaling.py, against figures worked out by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("scaling_paper")


def test_rings_and_chains(paper: Any) -> None:
    four = paper.Gpus(4, "", bandwidth=1e6, latency=0.01)
    # 6 steps of 250 kB each; 3 hops for the first piece
    assert paper.all_reduce_seconds(1e6, four) == pytest.approx(6 * (0.25 + 0.01))
    assert paper.broadcast_seconds(1e6, four) == pytest.approx(1 + 3 * 0.01)


def test_links_without_cost_are_perfect(paper: Any) -> None:
    free = paper.Gpus(8, "", bandwidth=float("inf"), latency=0.0)
    found = paper.estimate("resnet20", [10**6, 10**5], 10**4, free)
    assert (found.efficiency, found.efficiency_without_overlap, found.milliseconds_communication) == (1, 1, 0)
    step = paper.STEPS["resnet20"]
    assert found.speedup == pytest.approx(step.seconds / max(step.seconds / 8, step.least))


def test_overlap_hides_all_buckets_but_the_last(paper: Any) -> None:
    slow = paper.Gpus(2, "", bandwidth=1e9, latency=0.0)
    step = paper.STEPS["resnet50"]
    # 5 ms and 1 ms on the link; backward, two thirds of the step, is longer than that
    found = paper.estimate("resnet50", [5 * 10**6, 10**6], 0, slow)
    signal = 1e-9 * paper.SIGNAL_BYTES
    assert found.milliseconds_communication == pytest.approx(6 + 1e3 * signal)
    assert found.efficiency == pytest.approx(step.seconds / (step.seconds + 1e-3 + signal))
    assert found.efficiency_without_overlap == pytest.approx(step.seconds / (step.seconds + 6e-3 + signal))
