"""The statistics of the benchmarks, against figures worked out by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("measuring")


@pytest.mark.parametrize(
    ("num_values", "rank"),
    [
        (1, 1),
        (5, 1),  # all heads or all tails: 2 / 32, more than 5 %
        (6, 1),  # 2 / 64
        (8, 1),  # 1 / 256 on each side, and 9 / 256 = 3.5 % with one more
        (24, 7),  # up to 6 heads: 190051 / 2^24 = 1.1 %; up to 7: 3.2 %
    ],
)
def test_what_a_median_lies_between(measuring: Any, num_values: int, rank: int) -> None:
    values = [float(value) for value in range(num_values, 0, -1)]
    assert measuring.interval(values) == (rank, num_values + 1 - rank)


def test_ratios_are_of_the_same_turn(measuring: Any) -> None:
    assert measuring.spread([2.0, 9.0, 4.0], [1.0, 3.0, 8.0]) == (2.0, 0.5, 3.0)


def test_how_busy_the_processors_were(measuring: Any) -> None:
    stat = "cpu  100 20 30 4000 500 6 7 88 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
    assert measuring.busy_seconds(stat, 100) == (100 + 20 + 30 + 6 + 7) / 100
