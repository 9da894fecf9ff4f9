"""Rewinding: the point of a training that later levels go back to, and the checkpoint that a level starts from.

Both are Lightning checkpoints, so that going back is nothing but resuming: Lightning restores weights, batch norm,
optimizer, schedule, loop and loader position, and `SaveRandomState` the random generators.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from prunelab.pruning import PruningError

Rewind = Literal["weights", "learning_rate", "finetune"]
Checkpoint = dict[str, Any]

# what callbacks remember about one level: its masks, its time, its files. Whatever others remember is rewound
_OF_ONE_LEVEL = ("PruningAtInit", "PruningSummary", "MetricsCsv", "Timer", "ModelCheckpoint", "_BestCheckpoint")


class SaveRewindPoint(Callback):
    """Write the checkpoint `path` once, when `step` optimizer steps are done; 0 is before the first one.

    step: as in `parse_step`. A file that is there stays: it is the same point of the same training.
    Raises: PruningError when training starts, if the step is past its end, or lies inside an epoch and the loader
    cannot go on from there.
    """

    def __init__(self, path: Path, step: int | str, max_steps: int = -1) -> None:
        self._path = path
        self._wanted = step
        self._max_steps = max_steps
        self._step = -1
        self._is_there = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = parse_step(self._wanted, steps_per_epoch(trainer))
        self._check(trainer)
        # decided once for all ranks: saving is a collective call
        self._is_there = trainer.strategy.broadcast(self._path.exists())
        self._save_at_step(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not trainer.is_last_batch:  # from there Lightning would go on without on_train_epoch_start
            self._save_at_step(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_at_step(trainer)

    def _save_at_step(self, trainer: Trainer) -> None:
        if trainer.global_step == self._step and not self._is_there:
            trainer.save_checkpoint(self._path)
            self._is_there = True

    def _check(self, trainer: Trainer) -> None:
        epoch = steps_per_epoch(trainer)
        ends = [(trainer.max_epochs or -1) * epoch, self._max_steps]
        last = min((end for end in ends if end > 0), default=math.inf)
        if self._step >= last:
            raise PruningError(
                f"tickets.rewind_step {self._wanted} is not before the end of training, which takes {last} steps "
                f"({epoch} an epoch)"
            )
        loader = trainer.train_dataloader
        if self._step % epoch and not hasattr(loader, "load_state_dict"):
            raise PruningError(
                f"tickets.rewind_step {self._wanted} lies inside an epoch, from where {type(loader).__name__} cannot "
                f"go on: give it in epochs, such as 1ep ({epoch} steps each)"
            )


class LastLearningRate(Callback):
    """Remember the learning rates of the last optimizer step, one for each parameter group."""

    def __init__(self) -> None:
        self._rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"rates": self._rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rates = state_dict["rates"]

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> list[float]:
        """The rates in `checkpoint`."""
        return checkpoint["callbacks"][cls.__qualname__]["rates"]


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps of one epoch of a trainer that has its training loader."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def parse_step(step: int | str, steps_per_epoch: int) -> int:
    """Optimizer steps of "500it", 500 (both 500) or "2ep" (2 * steps_per_epoch).

    Raises: PruningError for anything else.
    """
    found = re.fullmatch(r"(\d+)(it|ep)?", str(step))
    if found is None:
        raise PruningError(f"tickets.rewind_step: expected steps such as 500it, or epochs such as 2ep, got {step}")
    return int(found[1]) * (steps_per_epoch if found[2] == "ep" else 1)


def start_checkpoint(rewind: Checkpoint, end: Checkpoint, mode: Rewind) -> Checkpoint:
    """What a level starts from. rewind: the rewind point of level 0; end: the last checkpoint of the level before.

    weights: `rewind` as it is. learning_rate: its loops, schedule, loader position and random state, with the weights
    of `end` and an optimizer whose slots are empty, as momentum belongs to the weights it was gathered at. finetune:
    the same without a schedule, at the last learning rate of `end`.
    Masks, times, files and means over batches of the level that wrote the checkpoint are left out.
    """
    start = {key: value for key, value in rewind.items() if key not in ("epoch_metrics", "should_stop")}
    rates = LastLearningRate.of(end) if mode == "finetune" else None
    if "epoch_metrics" in rewind:  # from inside an epoch, whose start is not logged again
        of_ranks = [_of_epoch_start(metrics, rates) for metrics in rewind["epoch_metrics"]["of_ranks"]]
        start["epoch_metrics"] = {"of_ranks": of_ranks, "callback_metrics": {}}
    start["callbacks"] = {key: state for key, state in rewind["callbacks"].items() if not key.startswith(_OF_ONE_LEVEL)}
    if mode == "weights":
        return start
    weights = ("state_dict", "current_model_state", "averaging_state")  # the last two: of weight averaging
    start |= {key: end[key] for key in weights if key in end}
    start["optimizer_states"] = [{**state, "state": {}} for state in rewind["optimizer_states"]]
    if rates is not None:
        for optimizer in start["optimizer_states"]:
            groups = zip(optimizer["param_groups"], rates, strict=True)
            optimizer["param_groups"] = [{**group, "lr": rate} for group, rate in groups]
        start["lr_schedulers"] = []
    return start


def _of_epoch_start(metrics: list[dict[str, Any]], rates: list[float] | None) -> list[dict[str, Any]]:
    """What was logged when the epoch began; the learning rate is the first of `rates`, where there are any."""
    logged = [dict(metric) for metric in metrics if metric["fx"] == "on_train_epoch_start"]
    for metric in logged:
        if metric["name"] == "lr" and rates is not None:
            weight = metric["sums"][1]
            metric["sums"] = [rates[0] * weight, weight]
    return logged
