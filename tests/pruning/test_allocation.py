from __future__ import annotations

import math
import random
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from prunelab.pruning import PruningError
from prunelab.pruning.allocation import allocate, apportion, ceil_share, erk_densities, round_half_up


@pytest.mark.parametrize(
    ("density", "num_weights", "count"),
    [(0.5, 5, 3), (0.5, 7, 4), (0.1, 45, 5), (0.05, 10, 1), (0.7, 15, 11), (0.29, 100, 29), (0.01, 49, 0), (1, 9, 9)],
)
def test_round_half_up(density: float, num_weights: int, count: int) -> None:
    """Not half to even, and not by the noise of floats: .29 * 100 is 28.999999999999996 in floats."""
    assert round_half_up(density, num_weights) == count


def test_round_half_up_is_decimal_rounding() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        density, num_weights = draw.randint(1, 10_000) / 10_000, draw.randint(1, 10**8)
        exact = (Decimal(repr(density)) * num_weights).to_integral_value(ROUND_HALF_UP)
        assert round_half_up(density, num_weights) == exact


def test_halves_of_densities_that_have_no_short_decimal() -> None:
    assert round_half_up(1 / 6, 3) == 1  # 1 / 6 in floats is a little less than a sixth
    assert round_half_up(1 - 0.9, 45) == 5
    assert round_half_up(float(np.float64(0.5)), 3) == round_half_up(np.float64(0.5), 3) == 2


@pytest.mark.parametrize(
    ("share", "num_weights", "count"),
    [(0.0, 10, 0), (0.1, 30, 3), (0.1, 31, 4), (0.01, 1, 1), (1.0, 7, 7), (0.3, 10, 3)],
)
def test_floors_are_rounded_up(share: float, num_weights: int, count: int) -> None:
    assert ceil_share(share, num_weights) == count


def test_largest_remainder() -> None:
    """3.6 + 3.3 + 3.1 = 10: whole parts 9, the tenth goes to the largest remainder; ties to the first layer."""
    no_floors, caps = dict.fromkeys("abc", 0), dict.fromkeys("abc", 100)
    assert apportion({"a": 3.1, "b": 3.6, "c": 3.3}, 10, no_floors, caps) == {"a": 3, "b": 4, "c": 3}
    assert apportion({"a": 1.5, "b": 1.5, "c": 1.0}, 4, no_floors, caps) == {"a": 2, "b": 1, "c": 1}


def test_floors_and_caps_pass_the_rest_on() -> None:
    """a's floor costs the others one each (b is at its quota, c half below); a's cap gives b what a may not have."""
    counts = apportion({"a": 0.5, "b": 5.0, "c": 4.5}, 10, {"a": 3, "b": 0, "c": 0}, {"a": 9, "b": 9, "c": 4})
    assert counts == {"a": 3, "b": 4, "c": 3}
    assert apportion({"a": 9.0, "b": 1.0}, 10, {"a": 0, "b": 0}, {"a": 4, "b": 8}) == {"a": 4, "b": 6}


def test_apportion_is_exact_and_in_bounds_for_random_cases() -> None:
    draw = random.Random(1)
    for _ in range(500):
        names = [str(i) for i in range(draw.randint(1, 6))]
        caps = {name: draw.randint(0, 30) for name in names}
        floors = {name: draw.randint(0, cap) for name, cap in caps.items()}
        total = draw.randint(sum(floors.values()), sum(caps.values()))
        counts = apportion({name: draw.uniform(0, 30) for name in names}, total, floors, caps)
        assert sum(counts.values()) == total
        assert all(floors[name] <= counts[name] <= caps[name] for name in names)


def test_apportion_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        apportion({"a": 1.0}, 1, {"a": 2}, {"a": 3})
    with pytest.raises(ValueError, match="sum to 4"):
        apportion({"a": 1.0}, 4, {"a": 2}, {"a": 3})


CONV, WIDE, LINEAR = torch.Size([32, 16, 3, 3]), torch.Size([64, 64, 3, 3]), torch.Size([10, 64])


def test_erk_of_a_convolution() -> None:
    """conv 16 -> 32, 3x3: density = eps * (16 + 32 + 3 + 3) / (16 * 32 * 9) = eps * 54 / 4608."""
    densities = erk_densities({"conv": CONV, "wide": WIDE}, 0.1)
    eps = Fraction(1, 10) * (4608 + 36_864) / (54 + 134)
    assert densities["conv"] == pytest.approx(float(eps * Fraction(54, 4608)), rel=1e-12)
    assert densities["wide"] == pytest.approx(float(eps * Fraction(134, 36_864)), rel=1e-12)


def test_erk_fixes_layers_above_one_at_one_and_solves_again() -> None:
    densities = erk_densities({"conv": CONV, "wide": WIDE, "linear": LINEAR}, 0.3)
    assert densities["linear"] == 1.0  # (64 + 10) / 640 is by far the highest
    rest = Fraction(3, 10) * (4608 + 36_864 + 640) - 640
    assert densities["conv"] == pytest.approx(float(rest / (54 + 134) * Fraction(54, 4608)), rel=1e-12)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_totals(allocation: str, density: float) -> None:
    shapes = {"conv": CONV, "wide": WIDE, "linear": LINEAR, "vector": torch.Size([7])}
    densities = allocate(allocation, shapes, density)
    total = math.fsum(densities[name] * math.prod(shape) for name, shape in shapes.items())
    assert total == pytest.approx(density * sum(math.prod(shape) for shape in shapes.values()), rel=1e-9)
    assert all(0 <= value <= 1 for value in densities.values())


def test_unknown_allocation() -> None:
    with pytest.raises(PruningError, match="lamp"):
        allocate("lamp", {"conv": CONV}, 0.1)
