from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunelab.pruning.gradients import BatchNorm, loss_gradient
from prunelab.pruning.normalise import layer_normalised
from prunelab.pruning.scoring import Scoring


@dataclass(frozen=True)
class Snip:
    """Score a weight by how much switching it off would move the loss: |w * dL/dw|.

    Needs labelled batches; batch norm uses its running statistics, as its authors did, unless `batch_norm: batch`.
    Gradients are summed over batches before the absolute value. signed: w * dL/dw itself (weights whose removal would
    lower the loss go first). normalise: scores as shares of their layer.
    Warns when the scoring loss has saturated (deep networks at initialisation on running statistics).
    Reference: Lee, Ajanthan, Torr 2019, "SNIP", arXiv 1810.02340, equation 5.
    Differs from the authors' code: they divide by the sum over all layers, which leaves the ranking as it is.
    """

    rounds: int = 1
    batch_norm: BatchNorm = "running"
    signed: bool = False
    normalise: bool = False
    needs_batches: ClassVar[bool] = True
    revives: ClassVar[bool] = False
    allocation: ClassVar[str | None] = None

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        scores = loss_gradient(scoring, batch_norm=self.batch_norm)
        for name, weight in scoring.weights().items():  # in place: fresh memory takes longer than the product
            product = scores[name].mul_(weight).masked_fill_(~scoring.masks[name], 0)
            if not self.signed:
                product.abs_()
        return layer_normalised(scores, scoring.masks) if self.normalise else scores
