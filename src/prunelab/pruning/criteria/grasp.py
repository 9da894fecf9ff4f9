from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunelab.pruning.gradients import BatchNorm, hessian_vector_product, loss_gradient
from prunelab.pruning.scoring import Scoring


@dataclass(frozen=True)
class Grasp:
    """Score a weight by how much removing it would reduce the gradient flow: w * (H g).

    g and H are gradient and Hessian, with respect to the prunable weights, of the cross-entropy of outputs/temperature.
    To first order, removing w changes |g|^2 by -2 w (H g): the highest are kept, so that the flow grows or falls least.
    Needs labelled batches, the same for both passes. Batch norm uses batch statistics, as its authors did; the result
    then depends on how the samples are cut into batches, which is why scoring batches are fixed.
    Memory does not grow with the number of batches: g first, then H g as the sum of H_b g over batches.
    Reference: Wang, Zhang, Grosse 2020, "GraSP", arXiv 2002.07376, equation 8 and algorithm 1 (there with a minus, and
    the highest removed).
    """

    rounds: int = 1
    temperature: float = 200.0
    batch_norm: BatchNorm = "batch"
    needs_batches: ClassVar[bool] = True
    revives: ClassVar[bool] = False
    allocation: ClassVar[str | None] = None

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        kept = loss_gradient(scoring, batch_norm=self.batch_norm, temperature=self.temperature)
        for name, gradient in kept.items():
            gradient.masked_fill_(~scoring.masks[name], 0)
        scores = hessian_vector_product(scoring, kept, batch_norm=self.batch_norm, temperature=self.temperature)
        for name, weight in scoring.weights().items():
            scores[name].mul_(weight).masked_fill_(~scoring.masks[name], 0)
        return scores
