from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunelab.pruning.criteria.random import Random
from prunelab.pruning.scoring import Scoring


@dataclass(frozen=True)
class Erk:
    """Random weights inside each layer, layer densities by ERK: eps * (sum of dimensions) / (product of dimensions).

    The densities are in `allocation.erk_densities`; the draws are those of `Random`. Needs no data.
    Reference: Evci et al. 2020, "Rigging the Lottery", arXiv 1911.11134, section 3.
    """

    rounds: int = 1
    needs_batches: ClassVar[bool] = False
    revives: ClassVar[bool] = False
    allocation: ClassVar[str | None] = "erk"

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        return Random()(scoring)
