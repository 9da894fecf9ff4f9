"""Spare a CPU the square roots of 0 that torch's Adam and its kin take for every pruned weight.

Torch takes square roots of tensors on a CPU by MKL, which needs several times as long for 0. So for the time of the
optimizer's step no second moment is below t, twice the smallest normal number, and afterwards what is at most t is 0.
No weight moves by another number: sqrt(t) = 1.5e-19 in float32 vanishes beside eps, t beside g^2. Where eps is smaller
than usual nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.optim import Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from prunelab.training.sharded import own_part

SMALLEST_EPS = 1e-10
# what they take square roots of; of other classes nobody knows what is in a slot of that name
SQUARES: dict[type[Optimizer], tuple[str, ...]] = {
    **dict.fromkeys((Adam, AdamW), ("exp_avg_sq", "max_exp_avg_sq")),
    **dict.fromkeys((NAdam, RAdam), ("exp_avg_sq",)),
    RMSprop: ("square_avg",),
    Adagrad: ("sum",),
}


def lift_zeros(optimizer: Optimizer, weights: Iterable[Tensor]) -> None:
    """Before a step: no second moment of these weights, which are on a CPU, is below t."""
    for slot in _squares(optimizer, weights):
        slot.clamp_min_(_least(slot))


def lower_zeros(optimizer: Optimizer, weights: Iterable[Tensor]) -> None:
    """After a step: second moments of at most t are 0."""
    for slot in _squares(optimizer, weights):
        torch.threshold_(slot, _least(slot), 0.0)


def _squares(optimizer: Optimizer, weights: Iterable[Tensor]) -> Iterator[Tensor]:
    """Those that a step takes square roots of by MKL: single or double precision, not fused."""
    names = SQUARES.get(type(optimizer))
    if names is None or any(group.get("fused") or group["eps"] < SMALLEST_EPS for group in optimizer.param_groups):
        return
    for slots in (optimizer.state.get(weight, {}) for weight in weights):
        for slot in (slots[name] for name in names if name in slots):
            if slot.dtype in (torch.float32, torch.float64):
                yield own_part(slot)


def _least(slot: Tensor) -> float:
    return 2 * torch.finfo(slot.dtype).tiny
