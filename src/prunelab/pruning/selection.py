"""Selection: the only place where a weight is dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prunelab.pruning.allocation import apportion, ceil_share, round_half_up
from prunelab.pruning.density import check_density
from prunelab.pruning.errors import PruningError
from prunelab.pruning.masks import Masks

Scope = Literal["global", "layerwise"]
_SAMPLE, _MANY = 1 << 13, 1 << 16  # a sample of values that are too many to be partitioned
_PART = 1 << 18  # values that are looked at together
_FEW = 0.2  # share of values that are worth being looked at twice


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
    names = list(masks)
    kept = {name: masks[name].flatten() for name in names}
    _check_scores(scores, masks)

    sizes = {name: mask.numel() for name, mask in kept.items()}
    caps = masks.layer_num_kept()
    if isinstance(density, Mapping):
        quotas = {name: check_density(density[name], zero_allowed=True) * sizes[name] for name in names}
        total = round_half_up(math.fsum(quotas.values()), 1)
    else:
        quotas = {name: check_density(density) * sizes[name] for name in names}
        total = round_half_up(density, sum(sizes.values()))
    if total > masks.num_kept:
        raise PruningError(
            f"{total} weights are to be kept but the masks keep {masks.num_kept}: pruned weights stay pruned"
        )
    floors = layer_floors(masks, min_layer_density, total)

    if isinstance(density, Mapping) or scope == "layerwise":
        counts = apportion(quotas, total, floors, caps)
        chosen = {name: _highest(scores[name].flatten(), kept[name], counts[name]) for name in names}
    else:
        chosen = _highest_globally({name: scores[name].flatten() for name in names}, kept, total, floors)
    return Masks({name: chosen[name].view(masks[name].shape) for name in names})


def layer_floors(masks: Masks, min_layer_density: float, total: int) -> dict[str, int]:
    """Number of weights that each layer keeps in any case: ceil(min_layer_density * n_l), or all that `masks` keeps.

    Raises: PruningError if `min_layer_density` is not in [0, 1] or the floors exceed the budget `total`.
    """
    if not 0 <= min_layer_density <= 1:
        raise PruningError(f"min_layer_density must be in [0, 1], got {min_layer_density}")
    floors = {
        name: min(ceil_share(min_layer_density, masks[name].numel()), num_kept)
        for name, num_kept in masks.layer_num_kept().items()
    }
    if sum(floors.values()) > total:
        raise PruningError(
            f"min_layer_density {min_layer_density} needs {sum(floors.values())} weights but the budget is {total}"
        )
    return floors


def _check_scores(scores: Mapping[str, Tensor], masks: Masks) -> None:
    if scores.keys() != masks.keys():
        raise ValueError(f"scores and masks name different parameters: {sorted(scores.keys() ^ masks.keys())}")
    for name, mask in masks.items():
        if scores[name].shape != mask.shape:
            raise ValueError(f"scores of {name} have shape {tuple(scores[name].shape)}, its mask {tuple(mask.shape)}")
        if not bool((torch.isfinite(scores[name]) | ~mask).all()):
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
        # on millions of values many times faster than torch.kthvalue on the CPU
        return torch.as_tensor(kth_smallest(values.detach().numpy(), k), dtype=values.dtype)
    return values.kthvalue(k).values


def lowest(values: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Ascending positions of all values up to the k-th smallest, k from 1, and that one; NaN is larger than any.

    More than k positions where others equal it. Of many values, if k is a small share, few are looked at twice.
    """
    if len(values) > _MANY and k < _FEW * len(values):
        near, low = _up_to(values, _bracket(values, k)[1])
        if len(near) >= k:
            threshold = kth_smallest(low, k)
            return near[low <= threshold], threshold
    threshold = kth_smallest(values, k)
    return np.flatnonzero(values <= threshold), threshold


def _up_to(values: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Ascending positions of all values up to `bound`, and these, found in parts that stay in the cache."""
    positions, found = [], []
    for begin in range(0, len(values), _PART):
        part = values[begin : begin + _PART]
        inside = _places(part <= bound)
        positions.append(inside + begin)
        found.append(part[inside])
    return np.concatenate(positions), np.concatenate(found)


def _places(mask: np.ndarray) -> np.ndarray:
    """As np.flatnonzero, in half the time where few are True: most groups of eight hold none, and are one number."""
    end = len(mask) // 8 * 8
    groups = mask[:end].view(np.uint64)
    some = np.flatnonzero(groups != 0)
    inside = np.flatnonzero(groups[some].view(np.bool_))
    return np.concatenate([(some[inside >> 3] << 3) + (inside & 7), end + np.flatnonzero(mask[end:])])


def kth_smallest(values: np.ndarray, k: int) -> float:
    """The k-th smallest number, k from 1; NaN counts as larger than any. The values are not changed."""
    if len(values) > _MANY:
        low, high = _bracket(values, k)
        num_below = np.count_nonzero(values < low)
        between = values[(values >= low) & (values <= high)]
        if num_below < k <= num_below + len(between):
            return float(np.partition(between, k - num_below - 1)[k - num_below - 1])
    return float(np.partition(values, k - 1)[k - 1])


def _bracket(values: np.ndarray, k: int) -> tuple[float, float]:
    """Two numbers between which the k-th smallest lies, as far as a sorted sample of many values tells."""
    sample = np.sort(values[:: len(values) // _SAMPLE])
    share = k / len(values)
    centre, spread = share * len(sample), 4 * math.sqrt(len(sample) * share * (1 - share)) + 2
    low = sample[int(centre - spread)] if centre >= spread else -np.inf
    high = sample[int(centre + spread)] if centre + spread < len(sample) else np.inf
    return low, high
