"""What the levels of a run share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_only

from prunelab.experiment.errors import RunError
from prunelab.experiment.levels import Tickets
from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.training import Classifier, PruningAtInit
from prunelab.training.rewind import Rewind, parse_step

Config = Mapping[str, Any]
Instantiate = Callable[[], tuple[dict[str, Any], Classifier, LightningDataModule, PruningAtInit]]


def is_first_process() -> bool:
    """Also before there is a trainer: launchers tell the processes that they start who they are.

    On the second and further nodes Lightning numbers them only when it connects them.
    """
    return getattr(rank_zero_only, "rank", None) in (None, 0) and int(os.environ.get("NODE_RANK", "0")) == 0


def say(line: str, *, flush: bool = False) -> None:
    """Print: of several processes the first one speaks."""
    if is_first_process():
        print(line, flush=flush)


@dataclass(frozen=True)
class Job:
    """What all levels of a run share.

    densities: of each level, level 0 first; None for masks from elsewhere. num_dense: how many levels come before the
    first pruned one, 0 or 1. ticket_dir: the run whose rewind point and levels this one builds on, itself unless it is
    a control. data: the data module of the level before, which has read its pictures. full_footprint: what the full
    network was measured to cost, by the first level of this process that did.
    """

    name: str
    config: Config
    instantiate: Instantiate
    run_dir: RunDir
    ticket_dir: RunDir
    tickets: Tickets
    densities: list[float | None]
    num_dense: int
    data: list[LightningDataModule] = field(default_factory=list, compare=False)
    full_footprint: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def seed(self) -> int:
        return self.config["seed_everything"]

    @property
    def control(self) -> str | None:
        return self.config.get("control")

    @property
    def indices(self) -> range:
        """The levels to train. A control shares the dense level with its ticket."""
        return range(self.num_dense if self.control else 0, len(self.densities))

    @property
    def rewind(self) -> Rewind | None:
        """How the levels after the first start; None: like any training, at the first step."""
        if self.control == "reinit" or self._needs_initialisation:
            return None
        return "learning_rate" if self.control == "dense" else self.tickets.rewind

    @property
    def _needs_initialisation(self) -> bool:
        """Whether this is a control of a ticket that was pruned before its rewind point.

        That point lacks weights that the control would keep, so it starts where the ticket did.
        Raises: RunError if the point lies inside the training, where the pruned weights have no values.
        """
        if self.control in (None, "dense") or self.num_dense or self.tickets.rewind != "weights":
            return False
        if len(self.densities) > 1 and parse_step(self.tickets.rewind_step, steps_per_epoch=1) > 0:
            raise RunError(
                f"control {self.control}: the ticket was pruned before its rewind point, which lacks the weights that "
                "the control would keep; there is only one with tickets.dense_first true or tickets.rewind_step 0"
            )
        return True

    def prunes(self, index: int) -> bool:
        return index >= self.num_dense and self.control != "dense"

    def level_before(self, index: int) -> LevelDir:
        """The level that the one at `index` builds on. A dense control goes on from its own weights."""
        is_own = self.control == "dense" and index - 1 in self.indices
        return (self.run_dir if is_own else self.ticket_dir).level(index - 1)
