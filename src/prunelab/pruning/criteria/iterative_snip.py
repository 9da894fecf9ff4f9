from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunelab.pruning.criteria.snip import Snip
from prunelab.pruning.gradients import BatchNorm
from prunelab.pruning.scoring import Scoring


@dataclass(frozen=True)
class IterativeSnip:
    """SNIP in several rounds: |w * dL/dw| of the network as pruned so far; pruned weights stay pruned.

    Needs labelled batches, as SNIP. 10 rounds, densities density^(k/10).
    Reference: de Jorge et al. 2021, "Progressive Skeletonization", arXiv 2006.09081, section 4; Verdenius et al. 2020,
    "SNIP-it", arXiv 2006.00896.
    """

    rounds: int = 10
    batch_norm: BatchNorm = "running"
    signed: bool = False
    needs_batches: ClassVar[bool] = True
    revives: ClassVar[bool] = False
    allocation: ClassVar[str | None] = None

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        return Snip(batch_norm=self.batch_norm, signed=self.signed)(scoring)
