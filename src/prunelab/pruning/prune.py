"""Rounds of score -> select."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from prunelab.pruning.allocation import Allocation, allocate, round_half_up
from prunelab.pruning.density import check_density
from prunelab.pruning.errors import PruningError
from prunelab.pruning.masks import Masks
from prunelab.pruning.prunable import prunable_names
from prunelab.pruning.schedules import Schedule, density_at
from prunelab.pruning.scoring import Batch, Criterion, HoldsRounds, Scoring, check_batches, score
from prunelab.pruning.selection import Scope, keep_highest, layer_floors

OnRound = Callable[[int, float, Mapping[str, Tensor], Masks], None]


def prune(
    net: nn.Module,
    criterion: Criterion,
    *,
    density: float,
    example_input: Tensor,
    masks: Masks | None = None,
    batches: Iterable[Batch] = (),
    rounds: int | None = None,
    schedule: Schedule = "exponential",
    scope: Scope = "global",
    allocation: Allocation | Mapping[str, float] | None = None,
    min_layer_density: float = 0.0,
    on_round: OnRound | None = None,
    **scoring: Any,
) -> Masks:
    """Masks that keep exactly round-half-up(density * N) weights, found in `rounds` rounds of score -> select.

    Round k of n keeps the density that `schedule` gives on the way from the density of `masks` (default: all
    convolution and linear weights) to `density`. `rounds=None` means the criterion's own number. `allocation` fixes
    densities per layer (default: the criterion's own, if it has one; a mapping must sum to `density`, and each layer
    goes its own way there by `schedule`); otherwise `scope` says who competes with whom.
    `on_round(index, density, scores, masks)` is called after each round, index from 0; scores are to be read, or
    copied, before it returns. Further keywords go to `Scoring` (loss, initial, generator).
    The network is unchanged: `masks.apply_to(net)` sets the zeros.
    If `masks` already have the wanted number of kept weights there is nothing to decide: they come back unscored.

    Raises: PruningError for densities, rounds, floors or networks that cannot be (see `keep_highest`,
    `prunable_names`); RuntimeError should the number kept ever differ from the number asked.
    """
    check_density(density)
    start = Masks.dense(net, prunable_names(net)) if masks is None else masks
    num_rounds = criterion.rounds if rounds is None else rounds
    if not isinstance(num_rounds, int) or isinstance(num_rounds, bool) or num_rounds < 1:
        raise PruningError(f"rounds must be a whole number of at least 1, got {num_rounds!r}")
    target = round_half_up(density, start.num_weights)
    if target == 0:
        raise PruningError(f"density {density} of {start.num_weights} prunable weights keeps none")
    if target == start.num_kept:
        return start
    if target > start.num_kept:
        raise PruningError(
            f"density {density} is above the {start.density:.6g} that the masks keep: pruning cannot add weights"
        )
    if allocation is None:
        allocation = criterion.allocation  # type: ignore[assignment]  # a protocol cannot name the literal types
    if isinstance(allocation, Mapping):
        _check_allocation(allocation, start, target)
    layer_floors(start, min_layer_density, target)  # whether they fit is known before anything is scored

    def layer_goals(whole: float, round: int) -> float | dict[str, float]:
        if allocation is None:
            return whole
        if isinstance(allocation, Mapping):
            begin = start.layer_densities()
            return {name: density_at(schedule, begin[name], allocation[name], round, num_rounds) for name in start}
        return allocate(allocation, {name: mask.shape for name, mask in start.items()}, whole)

    current, held = start, None
    if scope == "global" and allocation is None and not min_layer_density and isinstance(criterion, HoldsRounds):
        check_batches(criterion, batches)
        held = criterion.rounds_of(Scoring(net, start, example_input, batches=batches, **scoring))
    for index in range(num_rounds):
        now = density_at(schedule, start.density, density, index + 1, num_rounds)
        scores: Mapping[str, Tensor]
        if held is not None:
            scores = held.score()
            held.keep(round_half_up(now, start.num_weights))
            if on_round is not None or index == num_rounds - 1:
                current = held.masks()
        else:
            scores = score(
                net,
                criterion,
                example_input=example_input,
                masks=current,
                batches=batches,
                round=index,
                **scoring,
            )
            current = keep_highest(
                scores,
                layer_goals(now, index + 1),
                start if criterion.revives else current,
                scope=scope,
                min_layer_density=min_layer_density,
            )
        if on_round is not None:
            on_round(index, now, scores, current)
    if held is not None:
        held.end()
    if current.num_kept != target:
        raise RuntimeError(f"{current.num_kept} weights were kept, {target} were to be kept")
    return current


def _check_allocation(allocation: Mapping[str, float], masks: Masks, target: int) -> None:
    """Raises: PruningError unless it names the masks' layers, fits into what they keep and sums to `target` weights."""
    begin = masks.layer_densities()
    if allocation.keys() != begin.keys():
        raise PruningError(f"allocation and masks name different layers: {sorted(allocation.keys() ^ begin.keys())}")
    above = [name for name in begin if allocation[name] > begin[name]]
    if above:
        raise PruningError(f"the allocation asks for more than the masks keep in {', '.join(above)}")
    total = round_half_up(math.fsum(allocation[name] * mask.numel() for name, mask in masks.items()), 1)
    if total != target:
        raise PruningError(f"the allocation's layers sum to {total} weights, the density asks for {target}")
