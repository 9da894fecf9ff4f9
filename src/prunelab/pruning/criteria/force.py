from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunelab.pruning.gradients import BatchNorm, loss_gradient
from prunelab.pruning.scoring import Scoring


@dataclass(frozen=True)
class Force:
    """Score every weight by |w * dL/d(w * mask)|: gradients of the pruned network, weights of the full one.

    A weight that is switched off has a gradient too, so it may come back in a later round: foresight of what the
    network would be with it. Needs labelled batches, as SNIP. 10 rounds, densities density^(k/10).
    Reference: de Jorge et al. 2021, "Progressive Skeletonization", arXiv 2006.09081, equation 6.
    """

    rounds: int = 10
    batch_norm: BatchNorm = "running"
    needs_batches: ClassVar[bool] = True
    revives: ClassVar[bool] = True
    allocation: ClassVar[str | None] = None

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        scores = loss_gradient(scoring, batch_norm=self.batch_norm)
        for name, weight in scoring.weights().items():
            scores[name].mul_(weight).abs_()
        return scores
