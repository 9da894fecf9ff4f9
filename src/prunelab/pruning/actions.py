"""What a ticket's weights are set to before it is trained: the kept ones (mask-1 action), the pruned ones (mask-0).

Reference: Zhou, Lan, Liu, Yosinski 2019, "Deconstructing Lottery Tickets", arXiv 1905.01067, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from prunelab.pruning.errors import PruningError
from prunelab.pruning.masks import Masks

Mask1 = Literal["rewind", "reinit", "reshuffle", "constant"]
Mask0 = Literal["zero", "init", "init_if_grew"]

# a random criterion that was given the same generator must not have made the mask of the numbers drawn here
_STREAM = 0x6D61736B


def kept_values(
    action: Mask1,
    weights: Mapping[str, Tensor],
    masks: Masks,
    *,
    keep_sign: bool = False,
    fresh: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """New values for the kept weights, from `weights`, those of the rewind point.

    rewind: as they are. reinit: those of `fresh`, a newly drawn network. reshuffle: the values of the layer's kept
    weights, permuted among these. constant: +-c with random signs, c the standard deviation of all of the layer's
    weights, kept or not (divided by their number, in float64).
    keep_sign: sizes come from the action, signs from `weights` (0 counts as positive): |fresh| sign(w), permuted |w|
    sign(w), c sign(w); rewinding keeps signs in any case.
    generator: seeds the draws, which have a stream of their own; None means a new one with seed 0.
    Returns, for each name of `masks`, a new tensor of the weight's shape, in which pruned weights are those of
    `weights`. Both mappings may hold further names.
    Raises: PruningError for an unknown action; ValueError for reinit without `fresh`.
    """
    if action not in ("rewind", "reinit", "reshuffle", "constant"):
        raise PruningError(f"unknown mask_1 {action!r}: rewind, reinit, reshuffle or constant")
    if action == "reinit" and fresh is None:
        raise ValueError("reinit needs freshly drawn weights")
    draws = _stream(generator)
    values = {}
    for name, mask in masks.items():
        weight = weights[name].detach()
        mask = mask.to(weight.device)
        if action == "rewind":
            new = weight
        elif action == "reinit" and fresh is not None:
            new = fresh[name].detach().to(weight)
        elif action == "reshuffle":
            new = _shuffled(weight, mask, draws)
        else:
            new = _constant(weight, draws)
        if keep_sign:
            new = torch.where(weight < 0, -new.abs(), new.abs())
        values[name] = torch.where(mask, new, weight)
    return values


def pruned_values(
    action: Mask0, initial: Mapping[str, Tensor], final: Mapping[str, Tensor], masks: Masks
) -> dict[str, Tensor] | None:
    """What pruned weights hold while the others are trained, from their values at initialisation and after training.

    zero: None, they are 0. init: `initial`. init_if_grew: `initial` unless training made the weight smaller, 0 if
    |final| < |initial|. A weight that an earlier level pruned has `final` at what it was held at, and so keeps that.
    Returns name -> tensor of the weight's shape, 0 at kept weights. Raises: PruningError for an unknown action.
    """
    if action not in ("zero", "init", "init_if_grew"):
        raise PruningError(f"unknown mask_0 {action!r}: zero, init or init_if_grew")
    if action == "zero":
        return None
    values = {}
    for name, mask in masks.items():
        start = initial[name].detach()
        held = ~mask.to(start.device)
        if action == "init_if_grew":
            held &= final[name].detach().to(start).abs() >= start.abs()
        values[name] = start.masked_fill(~held, 0)
    return values


def _stream(generator: torch.Generator | None) -> torch.Generator:
    given = generator or torch.Generator().manual_seed(0)
    seed = torch.randint(2**62, (), generator=given, device=given.device)
    return torch.Generator().manual_seed(int(seed) ^ _STREAM)


def _shuffled(weight: Tensor, mask: Tensor, draws: torch.Generator) -> Tensor:
    kept = weight[mask]
    order = torch.randperm(len(kept), generator=draws).to(kept.device)
    return weight.masked_scatter(mask, kept[order])


def _constant(weight: Tensor, draws: torch.Generator) -> Tensor:
    size = weight.double().std(correction=0).to(weight.dtype)
    positive = torch.rand(weight.shape, generator=draws) < 0.5
    return torch.where(positive.to(weight.device), size, -size)
