from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunelab.pruning.criteria.random import Random
from prunelab.pruning.errors import PruningError
from prunelab.pruning.scoring import Scoring

Score = Literal[
    "large_final",
    "small_final",
    "large_init",
    "small_init",
    "large_init_large_final",
    "magnitude_increase",
    "movement",
    "random",
]


@dataclass(frozen=True)
class MaskCriterion:
    """Score a weight by where training took it, from w_i at initialisation to w_f as it stands in the network.

    In a run with levels, w_i is the weight at the rewind point.

    score: large_final |w_f|, small_final -|w_f|, large_init |w_i|, small_init -|w_i|, large_init_large_final
    min(alpha |w_f|, |w_i|), magnitude_increase |w_f| - |w_i|, movement |w_f - w_i|, random (draws as in `Random`).
    sign: any, or prefer weights whose sign training kept (same) or changed (different); 0 counts as positive. Scores
    are then ranks over all layers, from 0, equal ones sharing a rank: first the weights that violate the restriction,
    in the order of their scores, above them those that satisfy it. Needs no data; float64.
    Raises: PruningError if alpha is not positive, if a weight is inf or NaN (whatever the score), or if w_i is needed
    and `Scoring.initial` does not have it.
    Reference: Zhou, Lan, Liu, Yosinski 2019, "Deconstructing Lottery Tickets", arXiv 1905.01067, section 2.
    """

    rounds: int = 1
    score: Score = "large_final"
    sign: Literal["any", "same", "different"] = "any"
    alpha: float = 1.0
    needs_batches: ClassVar[bool] = False
    revives: ClassVar[bool] = False
    allocation: ClassVar[str | None] = None
    scores_trained_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise PruningError(f"mask_criterion.alpha must be above 0, got {self.alpha}")

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        final = {name: weight.double() for name, weight in scoring.weights().items()}
        _check_finite(final)
        if self.score == "random":
            scores = {name: draws.double() for name, draws in Random()(scoring).items()}
        elif self.score in ("large_final", "small_final"):
            scores = {name: self._size(weight.abs()) for name, weight in final.items()}
        else:
            initial = self._initial(scoring, final)
            scores = {name: self._compare(weight, initial[name]) for name, weight in final.items()}
        if self.sign == "any":
            return scores
        initial = self._initial(scoring, final)
        keeps_sign = {name: (weight < 0) == (initial[name] < 0) for name, weight in final.items()}
        wanted = {name: same if self.sign == "same" else ~same for name, same in keeps_sign.items()}
        return _ranks(scores, wanted, dict(scoring.masks))

    def _size(self, size: Tensor) -> Tensor:
        return -size if self.score.startswith("small") else size

    def _compare(self, final: Tensor, initial: Tensor) -> Tensor:
        if self.score == "large_init_large_final":
            return torch.minimum(self.alpha * final.abs(), initial.abs())
        if self.score == "magnitude_increase":
            return final.abs() - initial.abs()
        if self.score == "movement":
            return (final - initial).abs()
        return self._size(initial.abs())

    def _initial(self, scoring: Scoring, final: dict[str, Tensor]) -> dict[str, Tensor]:
        if scoring.initial is None:
            knob = f"score {self.score}" if self.sign == "any" else f"sign {self.sign}"
            raise PruningError(
                f"mask_criterion with {knob} needs the weights at initialisation: it scores trained weights, use it "
                "with tickets.levels, after a dense level (tickets.dense_first)"
            )
        for name, weight in final.items():
            if name not in scoring.initial or scoring.initial[name].shape != weight.shape:
                raise PruningError(f"the weights at initialisation lack {name}, or have it in another shape")
        initial = {name: scoring.initial[name].detach().to(weight) for name, weight in final.items()}
        _check_finite(initial)
        return initial


def _check_finite(weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise PruningError(f"{name} holds inf or NaN: a training that diverged has nothing to score")


def _ranks(scores: dict[str, Tensor], wanted: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ranks of the kept weights' scores over all layers, those of `wanted` above all others; 0 at pruned weights.

    Adding an offset to the scores would round them.
    """
    kept = torch.cat([scores[name][mask] for name, mask in masks.items()])
    above = torch.cat([wanted[name][mask] for name, mask in masks.items()])
    values, ranks = kept.unique(return_inverse=True)
    parts = (ranks + len(values) * above).double().split([int(mask.sum()) for mask in masks.values()])
    return {
        name: torch.zeros_like(scores[name]).masked_scatter(mask, part)
        for (name, mask), part in zip(masks.items(), parts, strict=True)
    }
