from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunelab.pruning.normalise import layer_normalised
from prunelab.pruning.scoring import Scoring


@dataclass(frozen=True)
class Magnitude:
    """Score a weight by its size: |w|.

    Needs no data. normalise: divide each layer's scores by their sum over kept weights, so that layers of different
    scale compete on equal terms. Reference: Han et al. 2015, arXiv 1506.02626.
    """

    rounds: int = 1
    normalise: bool = False
    needs_batches: ClassVar[bool] = False
    revives: ClassVar[bool] = False
    allocation: ClassVar[str | None] = None
    scores_trained_weights: ClassVar[bool] = True

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        scores = {name: weight.abs() for name, weight in scoring.weights().items()}
        return layer_normalised(scores, scoring.masks) if self.normalise else scores
