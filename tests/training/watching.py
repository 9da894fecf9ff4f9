"""A criterion and a callback that notice what happens to them."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from prunelab.pruning import Scoring


class ScoresOnce:
    """A criterion that fails when it is asked a second time."""

    rounds, needs_batches, revives, allocation = 1, False, False, None

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls > 1:
            raise AssertionError("scored again")
        return {name: weight.abs() for name, weight in scoring.weights().items()}


class Record(Callback):
    """What the pruning hooks were called with, and the epochs that began."""

    def __init__(self) -> None:
        self.rounds: list[tuple[Any, ...]] = []
        self.pruned: list[tuple[Any, ...]] = []
        self.order: list[str] = []

    def on_pruning_round(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.order.append("round")
        self.rounds.append(arguments)

    def on_pruned(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.order.append("pruned")
        self.pruned.append(arguments)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.order.append("epoch")
