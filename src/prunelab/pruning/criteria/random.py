from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunelab.pruning.scoring import Scoring


@dataclass(frozen=True)
class Random:
    """Score weights by independent draws, uniform in [0, 1): the control that every criterion has to beat.

    Scope global lets the layers' counts fluctuate; scope layerwise gives every layer the same density. Needs no data.
    Draws come from a generator seeded by a draw from `Scoring.generator`, in the order of the masks. A stream of its
    own: where weights and scores come from one seed, they would be made of the same random numbers.
    """

    rounds: int = 1
    needs_batches: ClassVar[bool] = False
    revives: ClassVar[bool] = False
    allocation: ClassVar[str | None] = None

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        given = scoring.generator or torch.Generator().manual_seed(0)
        seed = torch.randint(2**62, (), generator=given, device=given.device)
        generator = torch.Generator().manual_seed(int(seed))
        return {
            name: torch.rand(weight.shape, generator=generator).to(weight.device)
            for name, weight in scoring.weights().items()
        }
