from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunelab.pruning.scoring import Scoring


@dataclass(frozen=True)
class Lamp:
    """Score a weight by its square over the squares of its layer that are not smaller: w_u^2 / sum_{v >= u} w_v^2.

    v >= u in the order of |w|, ties by position; pruned weights count as 0. Every layer's largest weight scores 1, so
    global selection never empties a layer before all others are down to one weight. Needs no data. float64.
    Reference: Lee et al. 2021, "Layer-adaptive sparsity for the Magnitude-based Pruning", arXiv 2010.07611.
    """

    rounds: int = 1
    needs_batches: ClassVar[bool] = False
    revives: ClassVar[bool] = False
    allocation: ClassVar[str | None] = None
    scores_trained_weights: ClassVar[bool] = True

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        return {name: _lamp(weight.masked_fill(~scoring.masks[name], 0)) for name, weight in scoring.weights().items()}


def _lamp(weight: Tensor) -> Tensor:
    squares = weight.double().flatten().square()
    ascending, order = squares.sort(stable=True)
    not_smaller = ascending.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = ascending / not_smaller.where(not_smaller > 0, 1.0)
    return scores.view(weight.shape)
