"""How many weights each layer keeps: densities per layer (uniform, ERK) and exact whole numbers from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal

import torch

from prunelab.pruning.errors import PruningError

Allocation = Literal["uniform", "erk"]


def allocate(allocation: Allocation, shapes: Mapping[str, torch.Size], density: float) -> dict[str, float]:
    """Density of each layer so that the whole has `density`. Raises: PruningError for an unknown allocation."""
    if allocation == "uniform":
        return dict.fromkeys(shapes, density)
    if allocation == "erk":
        return erk_densities(shapes, density)
    raise PruningError(f"unknown allocation {allocation!r}: uniform or erk")


def erk_densities(shapes: Mapping[str, torch.Size], density: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel: density_l = eps * (sum of the dimensions of W_l) / (product of the dimensions of W_l).

    eps is solved so that the total is density * N; layers that would exceed 1 are fixed at 1 and eps is solved again.
    Reference: Mocanu et al. 2018, arXiv 1707.04780 (ER); Evci et al. 2020, "RigL", arXiv 1911.11134, section 3 (ERK).
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    budget = density * sum(sizes.values())
    full: set[str] = set()
    while True:
        free = [name for name in shapes if name not in full]
        if not free:
            return dict.fromkeys(shapes, 1.0)
        eps = (budget - sum(sizes[name] for name in full)) / sum(raw[name] * sizes[name] for name in free)
        over = {name for name in free if eps * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in full else eps * raw[name] for name in shapes}
        full |= over


def round_half_up(density: float, num_weights: int) -> int:
    """density * num_weights, rounded half up; six decimals count: 3 * (1 / 6) is a half."""
    return math.floor(round(density * num_weights, 6) + 0.5)


def ceil_share(share: float, num_weights: int) -> int:
    """ceil(share * num_weights), exact: the share counts as the decimal number that it prints as."""
    return math.ceil(Decimal(repr(float(share))) * num_weights)


def apportion(
    quotas: Mapping[str, float], total: int, floors: Mapping[str, int], caps: Mapping[str, int]
) -> dict[str, int]:
    """Whole numbers near `quotas`, each within its floor and cap, that sum to `total` (largest remainder method).

    Every layer gets the whole part of its quota, held within floor and cap; what is missing goes, one by one, to the
    layers with the largest remainders (ties: first layer first), what is too much is taken from those that exceed
    their quota most.
    Raises: ValueError unless sum of floors <= total <= sum of caps.
    """
    if not sum(floors.values()) <= total <= sum(caps.values()):
        raise ValueError(f"no counts between {floors} and {caps} sum to {total}")
    counts = {name: min(max(math.floor(quota), floors[name]), caps[name]) for name, quota in quotas.items()}
    while (missing := total - sum(counts.values())) != 0:
        sign = 1 if missing > 0 else -1
        movable = [name for name in counts if (counts[name] < caps[name] if sign > 0 else counts[name] > floors[name])]
        # six decimals: the noise of floats must not decide a tie
        movable.sort(key=lambda name: sign * round(counts[name] - quotas[name], 6))
        for name in movable[: abs(missing)]:
            counts[name] += sign
    return counts
