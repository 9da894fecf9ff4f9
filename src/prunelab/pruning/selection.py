"""Selection: the only place where a weight is dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from prunelab.pruning.allocation import apportion, ceil_share, round_half_up
from prunelab.pruning.errors import PruningError
from prunelab.pruning.masks import Masks

Scope = Literal["global", "layerwise"]


def keep_highest(
    scores: Mapping[str, Tensor],
    density: float | Mapping[str, float],
    masks: Masks,
    *,
    scope: Scope = "global",
    min_layer_density: float = 0.0,
) -> Masks:
    """Keep the highest scores among the weights that `masks` keeps; returns new Masks.

    The number kept is exact: `density` * N, rounded half up, N = number of prunable weights. With scope "global" all
    layers compete; with "layerwise", or a density per layer, each layer gets its share by largest remainder, so that
    the total is that number too. `min_layer_density`: the best ceil(floor * n_l) weights of each layer are kept first.
    Pruned weights stay pruned whatever their score. Ties are broken by position: the lower flat index goes first, and
    the first layer before the second.

    Raises: PruningError for a density outside (0, 1] or above that of `masks`, or floors that exceed the budget;
    ValueError for scores with other names or shapes than the masks, or with inf or NaN among the kept weights.
    """
    if scope not in ("global", "layerwise"):
        raise PruningError(f"unknown scope {scope!r}: global or layerwise")
    if not 0 <= min_layer_density <= 1:
        raise PruningError(f"min_layer_density must be in [0, 1], got {min_layer_density}")
    names = list(masks)
    kept = {name: masks[name].flatten() for name in names}
    _check_scores(scores, masks)

    sizes = {name: mask.numel() for name, mask in kept.items()}
    caps = masks.layer_num_kept()
    floors = {name: min(ceil_share(min_layer_density, sizes[name]), caps[name]) for name in names}
    if isinstance(density, Mapping):
        quotas = {name: check_density(density[name], zero_allowed=True) * sizes[name] for name in names}
        # six decimals: the sum of the quotas carries rounding errors that must not decide a half
        total = round_half_up(round(math.fsum(quotas.values()), 6), 1)
    else:
        quotas = {name: check_density(density) * sizes[name] for name in names}
        total = round_half_up(density, sum(sizes.values()))
    if total > masks.num_kept:
        raise PruningError(
            f"{total} weights are to be kept but the masks keep {masks.num_kept}: pruned weights stay pruned"
        )

    if isinstance(density, Mapping) or scope == "layerwise":
        counts = apportion(quotas, total, floors, caps)
        chosen = {name: _highest(scores[name].flatten(), kept[name], counts[name]) for name in names}
    else:
        chosen = _highest_globally({name: scores[name].flatten() for name in names}, kept, total, floors)
    return Masks({name: chosen[name].view(masks[name].shape) for name in names})


def check_density(density: float, *, zero_allowed: bool = False) -> float:
    """Raises: PruningError unless density is a number in (0, 1]."""
    if not isinstance(density, int | float) or isinstance(density, bool):
        raise PruningError(f"density must be a number in (0, 1], got {density!r}")
    if not (0 < density <= 1 or (zero_allowed and density == 0)):
        raise PruningError(f"density must be in (0, 1] (kept / prunable weights), got {density}")
    return density


def _check_scores(scores: Mapping[str, Tensor], masks: Masks) -> None:
    if scores.keys() != masks.keys():
        raise ValueError(f"scores and masks name different parameters: {sorted(scores.keys() ^ masks.keys())}")
    for name, mask in masks.items():
        if scores[name].shape != mask.shape:
            raise ValueError(f"scores of {name} have shape {tuple(scores[name].shape)}, its mask {tuple(mask.shape)}")
        if not bool(torch.isfinite(scores[name][mask]).all()):
            raise ValueError(f"scores of {name} hold inf or NaN")


def _highest_globally(
    scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], total: int, floors: Mapping[str, int]
) -> dict[str, Tensor]:
    """The floors' best of each layer, then the best of the rest, all layers competing."""
    safe = {name: _highest(scores[name], kept[name], floors[name]) for name in scores}
    contenders = [kept[name] & ~safe[name] for name in scores]
    flat = _highest(torch.cat(list(scores.values())), torch.cat(contenders), total - sum(floors.values()))
    parts = flat.split([mask.numel() for mask in kept.values()])
    return {name: part | safe[name] for name, part in zip(scores, parts, strict=True)}


def _highest(scores: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Mask (flat) of the `count` candidates with the highest scores; among equals the later index is kept."""
    chosen = torch.zeros_like(candidates)
    if count == 0:
        return chosen
    index = candidates.nonzero().flatten()
    num_dropped = index.numel() - count
    if num_dropped == 0:
        return candidates
    competing = scores[index]
    threshold = _kth_smallest(competing, num_dropped)
    above = competing > threshold
    num_ties_kept = count - int(above.sum())
    if num_ties_kept:
        ties = (competing == threshold).nonzero().flatten()
        above[ties[-num_ties_kept:]] = True
    chosen[index[above]] = True
    return chosen


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # an introselect: on millions of values several times faster than torch.kthvalue on the CPU
        array = values.detach().clone().numpy()
        array.partition(k - 1)
        return torch.as_tensor(array[k - 1], dtype=values.dtype)
    return values.kthvalue(k).values
