"""How a run's Trainer is made: what the user set, completed by what keeps, shows and resumes a run."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar, Timer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import LevelDir, write_atomically
from prunelab.report.metrics_csv import MetricsCsv
from prunelab.report.progress import EpochLines, PruningProgress
from prunelab.report.tensorboard import PruningSummary
from prunelab.training import KeepPruned, PruningAtInit
from prunelab.training.interruption import KeepSigterm, StopOnSignal
from prunelab.training.network import find_network
from prunelab.training.ranks import check_alike
from prunelab.training.resume import AtomicCheckpointIO, CarryEpochMetrics, SaveRandomState, SettleBuckets
from prunelab.training.rewind import LastLearningRate, SaveRewindPoint
from prunelab.training.sharded import restores_late


def run_trainer(
    arguments: Mapping[str, Any],
    config: Mapping[str, Any],
    pruning: PruningAtInit,
    level: LevelDir,
    step: int,
    rewind_step: int | str | None,
    prefix: str,
    start: dict[str, Any] | None = None,
) -> Trainer:
    """A Trainer with the user's `arguments` that prunes and leaves everything in `level`.

    step: where it begins. rewind_step: which point it saves for later levels, if any. prefix: of its lines. start: the
    checkpoint that `fit(ckpt_path=IN_MEMORY)` begins with. What the user set stays, apart from progress bars where the
    output is no terminal.
    Raises: RunError for a strategy that shards the network, and for sync_batchnorm on a CPU.
    """
    bars = sys.stdout.isatty() and arguments.get("enable_progress_bar") is not False
    checkpoints: dict[str, Any] = {
        "dirpath": level.path,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    max_epochs, max_steps = arguments.get("max_epochs"), arguments.get("max_steps", -1)
    callbacks = [
        _SameStart(level, step),
        pruning,
        KeepPruned(),
        Timer(arguments.get("max_time"), verbose=False),
        _SaveTicket(pruning, level),
        ConfigInCheckpoint(config),
        SaveRandomState(),
        SettleBuckets(),
        CarryEpochMetrics(),
        LastLearningRate(),
        PruningProgress(prefix=prefix),
        PruningSummary(),
        MetricsCsv(level.metrics),
        RichProgressBar() if bars else EpochLines(prefix),
        *([] if max_steps == -1 else [_StopAtStep(max_steps)]),
        _StayStopped(),
        *_as_list(arguments.get("callbacks")),
        *([] if rewind_step is None else [SaveRewindPoint(level.rewind_checkpoint, rewind_step, max_steps)]),
        StopOnSignal(level.last_checkpoint),
        _BestCheckpoint(filename="best", monitor="val_accuracy", mode="max", **checkpoints),
        ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **checkpoints),
    ]
    logger = arguments.get("logger")
    if logger is None or logger is True:
        # default_hp_metric: Lightning's own placeholder would take the place of ours in the hparams tab
        logger = _EventFile(level.path, name="", version="", default_hp_metric=False, purge_step=step)
    defaults = {
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": level.path,
    }
    trainer = Trainer(
        **{
            **arguments,
            **{key: value for key, value in defaults.items() if arguments.get(key) is None},
            "callbacks": callbacks,
            "plugins": [AtomicCheckpointIO(start), *_as_list(arguments.get("plugins"))],
            "logger": logger,
            "enable_progress_bar": bars,
            "max_epochs": -1 if max_epochs is None else max_epochs,
            "max_steps": -1,
        }
    )
    if arguments.get("sync_batchnorm") and trainer.strategy.root_device.type == "cpu":
        raise RunError("trainer.sync_batchnorm works on GPUs only, and this run is on a CPU: leave it out")
    if restores_late(trainer):
        raise RunError(
            f"trainer.strategy {type(trainer.strategy).__name__}: runs train on one device or with ddp; for networks "
            "that are sharded (FSDP2) see docs/sharding.md"
        )
    return trainer


def seconds_training(trainer: Trainer) -> float:
    """Seconds from the start to the end of training, validation included, over all resumptions."""
    return _timer(trainer).time_elapsed("train")


def out_of_time(trainer: Trainer) -> bool:
    """Whether `max_time` was set and ended the training."""
    remaining = _timer(trainer).time_remaining("train")
    return remaining is not None and remaining <= 0


def _timer(trainer: Trainer) -> Timer:
    return next(callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]


def measuring_trainer(arguments: Mapping[str, Any]) -> Trainer:
    """A Trainer on the same devices that only measures: it leaves no files."""
    own = ("accelerator", "strategy", "devices", "num_nodes", "precision", "limit_test_batches", "limit_val_batches")
    return Trainer(
        **{key: arguments[key] for key in own if key in arguments},
        logger=False,
        callbacks=[KeepSigterm()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Warnings in one line each, without Lightning's remarks about hardware and about loaders without workers (ours
    need none), and without those that its own code earns from torch."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    # it says which process has died, before it kills the first one
    logging.getLogger("lightning_fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*Checkpoint directory.*exists and is not empty.*",
            ".*Total length of `list` across ranks is zero.*",  # no validation split, no validation loader
            r".*isinstance\(treespec, LeafSpec\).*is deprecated.*",
        ):
            warnings.filterwarnings("ignore", message)
        warnings.showwarning = _warn_in_one_line
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, before in zip(loggers, levels, strict=True):
                logger.setLevel(before)


@rank_zero_only
def _warn_in_one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


class ConfigInCheckpoint(Callback):
    """What the checkpoint was made by, to refuse it to another configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = json.dumps(config)

    def state_dict(self) -> dict[str, str]:
        return {"config": self._config}

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
        """The config in `checkpoint`; None if no run of ours wrote it."""
        state = checkpoint.get("callbacks", {}).get(cls.__qualname__)
        return None if state is None else json.loads(state["config"])


class _SameStart(Callback):
    """All processes are about to train the same level of the same run from the same step, for as long.

    Each has decided so by the files that it sees: a file system may show those of a moment ago on another node.
    Raises: RanksDiffer on all of them, otherwise.
    """

    def __init__(self, level: LevelDir, step: int) -> None:
        self._run, self._level, self._step = level.path.parent.name, level.path.name, step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            own = {"run": self._run, "level": self._level, "starting point": f"step {self._step}"}
            check_alike(trainer, "setup", own | {"max_epochs": str(trainer.max_epochs)})


class _StopAtStep(Callback):
    """The end after `max_steps` optimizer steps.

    With its own `max_steps` Lightning takes a checkpoint from the end of an epoch for one from inside it, and a resumed
    run would begin with an epoch without batches.
    """

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if trainer.global_step >= self._max_steps:
            trainer.should_stop = True


class _StayStopped(Callback):
    """A training that some callback ended early is not taken up again, as it is after `max_time`."""

    def __init__(self) -> None:
        self._stopped = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["should_stop"] = trainer.should_stop and not out_of_time(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._stopped = checkpoint.get("should_stop", False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop |= self._stopped


class _SaveTicket(Callback):
    """masks.pt, as soon as the masks exist, in a resumed run too: its checkpoint may come from elsewhere.

    And ticket.pt, the state dict of the pruned network before its first step, for a plain `load_state_dict`; of the
    full network, where a compact one trains, whose channels are in channel_index.pt.
    """

    def __init__(self, pruning: PruningAtInit, level: LevelDir) -> None:
        self._pruning = pruning
        self._level = level

    def on_pruned(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_global_zero:
            state = find_network(pl_module, self._pruning.net).state_dict()
            buffer = BytesIO()
            torch.save({name: tensor.cpu() for name, tensor in state.items()}, buffer)
            write_atomically(self._level.ticket, buffer.getvalue())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {self._level.masks: self._pruning.masks, self._level.channel_index: self._pruning.index}
        for path, content in found.items():
            if trainer.is_global_zero and content is not None:  # they were found just before this
                buffer = BytesIO()
                content.save(buffer)
                write_atomically(path, buffer.getvalue())


class _BestCheckpoint(ModelCheckpoint):
    """The epoch of the highest validation accuracy; without validation there is none."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "val_accuracy" in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "val_accuracy" in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)


class _EventFile(TensorBoardLogger):
    """One event file for scoring, training and test, and no config beside ours; what is logged is on the disk at once.

    Lightning's logger closes its file at the end of each `fit` and `test`, after which the next value opens another.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.save()

    def save(self) -> None:
        if self._experiment is not None:
            self._experiment.flush()

    def finalize(self, status: str) -> None:
        self.save()


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
