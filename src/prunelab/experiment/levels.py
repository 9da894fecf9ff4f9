"""Levels: how dense each training of a lottery ticket is, where it starts, and what a config says about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise

from prunelab.pruning import PruningError
from prunelab.pruning.actions import Mask0, Mask1
from prunelab.training.rewind import Rewind, parse_step


@dataclass(frozen=True)
class Tickets:
    """How a ticket is found: prune, rewind, train, repeat.

    How dense the pruned levels are is said in one of three ways. levels with density_per_level: level k keeps
    density_per_level**k, which with 0.8 prunes a fifth of what is left each time. densities: one by one. levels with
    `pruning.density` (or its other spellings): level k of n keeps density**(k / n). With none of them there is one
    level, pruned at initialisation.
    layer_rates: shell pattern of parameter names -> how fast these layers are pruned relative to the others, which
    have rate 1: of what a layer has left, a level prunes rate * (1 - factor); the first pattern that matches counts.
    With them every layer has its own budget and the scope does not matter.
    dense_first: whether a dense training, level 0, comes before the pruned ones. None: as the criterion is meant, yes
    for those that score trained weights (magnitude, lamp, mask_criterion), no for those at initialisation.
    rewind: what a level starts from. weights: everything is what it was after rewind_step steps of level 0, weights,
    batch norm, optimizer, schedule, data order, random state. learning_rate: the same, but the weights and batch norm
    that the level before ended with, and an empty optimizer. finetune: like learning_rate, with the last learning
    rate of level 0 throughout. So a level always takes as many steps as level 0 took after rewind_step.
    rewind_step: optimizer steps ("500it" or 500) or epochs ("2ep"); 0 is the initialisation.
    mask_1, keep_sign: what the kept weights are set to at the start of a level (`pruning.actions.kept_values`).
    mask_0: what the pruned weights hold (`pruning.actions.pruned_values`).
    supermask: also test each pruned level before it is trained.
    References: Frankle, Carbin 2019, arXiv 1803.03635; Frankle et al. 2019, arXiv 1903.01611 (rewinding); Renda,
    Frankle, Carbin 2020, arXiv 2003.02389 (learning rate rewinding, fine-tuning); Zhou et al. 2019, arXiv 1905.01067
    (mask_1, mask_0, supermasks).

    Raises: PruningError for densities that grow or are not in (0, 1], and for what does not go together.
    """

    levels: int | None = None
    density_per_level: float | None = None
    densities: list[float] | None = None
    layer_rates: dict[str, float] | None = None
    dense_first: bool | None = None
    rewind: Rewind = "weights"
    rewind_step: int | str = 0
    mask_1: Mask1 = "rewind"
    keep_sign: bool = False
    mask_0: Mask0 = "zero"
    supermask: bool = False

    def __post_init__(self) -> None:
        parse_step(self.rewind_step, steps_per_epoch=1)
        if self.keep_sign and self.mask_1 == "rewind":
            raise PruningError("tickets.keep_sign needs mask_1 reinit, reshuffle or constant: rewinding keeps signs")
        if self.levels is not None and self.levels < 1:
            raise PruningError(f"tickets.levels must be at least 1, got {self.levels}")
        if self.density_per_level is not None:
            if not 0 < self.density_per_level <= 1:
                raise PruningError(f"tickets.density_per_level must be in (0, 1], got {self.density_per_level}")
            if self.levels is None or self.densities is not None:
                raise PruningError("tickets.density_per_level goes with tickets.levels, and not with densities")
        if self.densities is not None:
            _check_densities(self.densities)
            if self.levels not in (None, len(self.densities)):
                raise PruningError(f"tickets.levels is {self.levels} but there are {len(self.densities)} densities")
        for pattern, rate in (self.layer_rates or {}).items():
            if rate < 0 or (self.density_per_level is not None and rate * (1 - self.density_per_level) >= 1):
                raise PruningError(f"tickets.layer_rates: {pattern} cannot have rate {rate}: no weight would be left")

    @property
    def has_levels(self) -> bool:
        """Whether the config speaks of levels; otherwise there is one, pruned at initialisation."""
        return self.levels is not None or self.densities is not None

    def pruned_densities(self, density: float | None) -> list[float]:
        """Density of each pruned level; `density`: of the last one, where levels alone are given.

        Of layers with other rates density_per_level is not the density of the whole: see `layer_allocations`.
        """
        if self.densities is not None:
            return list(self.densities)
        if self.levels is not None and self.density_per_level is not None:
            return [self.density_per_level**k for k in range(1, self.levels + 1)]
        if density is None:
            raise PruningError("tickets.levels needs tickets.density_per_level, or a density to reach")
        num_levels = self.levels or 1
        return [density ** (k / num_levels) for k in range(1, num_levels + 1)]

    def layer_allocations(self, density: float | None, sizes: Mapping[str, int]) -> list[dict[str, float]] | None:
        """Density of each layer at each pruned level; None without layer_rates. sizes: weights of each layer.

        With density_per_level f a layer of rate r keeps (1 - r (1 - f))**k at level k. Otherwise the level's density
        is given, and f is solved for: from one level to the next every layer keeps 1 - r (1 - f) of what it had, with
        the f that gives the whole its density.
        """
        if not self.layer_rates:
            return None
        rates = {name: self._rate(name) for name in sizes}
        if unmatched := [p for p in self.layer_rates if not any(fnmatch(name, p) for name in sizes)]:
            raise PruningError(
                f"tickets.layer_rates: {unmatched[0]} matches no prunable layer; there are {list(sizes)}"
            )
        levels, current = [], dict.fromkeys(sizes, 1.0)
        for whole in self.pruned_densities(density):
            share = 1 - self.density_per_level if self.density_per_level else _solve(current, rates, sizes, whole)
            current = {name: current[name] * (1 - rates[name] * share) for name in sizes}
            levels.append(current)
        return levels

    def _rate(self, name: str) -> float:
        return next((rate for pattern, rate in (self.layer_rates or {}).items() if fnmatch(name, pattern)), 1.0)


def density_of_whole(allocation: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    return math.fsum(allocation[name] * size for name, size in sizes.items()) / sum(sizes.values())


def _solve(current: Mapping[str, float], rates: Mapping[str, float], sizes: Mapping[str, int], whole: float) -> float:
    """The share s for which layers that keep 1 - rate * s of what they have make up a network of density `whole`."""

    def density(share: float) -> float:
        return density_of_whole({name: current[name] * (1 - rates[name] * share) for name in sizes}, sizes)

    # linear in s, and every layer has to keep something
    slope = density(0) - density(1)
    share = (density(0) - whole) / slope if slope else math.inf
    if share * max(rates.values()) >= 1 or (share < 0 and not math.isclose(density(0), whole)):
        raise PruningError(f"tickets.layer_rates: density {whole:.6g} cannot be reached at these rates")
    return max(share, 0.0)


def _check_densities(densities: Sequence[float]) -> None:
    if not densities:
        raise PruningError("tickets.densities is empty")
    if wrong := [density for density in densities if not 0 < density <= 1]:
        raise PruningError(f"tickets.densities must be in (0, 1], got {wrong[0]}")
    for before, after in pairwise(densities):
        if after > before:
            raise PruningError(f"tickets.densities grow from {before} to {after}: pruned weights stay pruned")
