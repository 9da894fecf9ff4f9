"""One level: one training, from where it starts to its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, seed_everything
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from prunelab.data import ImageDataModule
from prunelab.experiment.errors import RunError
from prunelab.experiment.job import Config, Job, is_first_process, say
from prunelab.experiment.level_record import level_record, measure_ahead
from prunelab.experiment.preparation import build_on, set_budget
from prunelab.experiment.records import versions
from prunelab.experiment.run_dir import LevelDir, differing_keys
from prunelab.experiment.trainer import ConfigInCheckpoint, run_trainer
from prunelab.pruning.scoring import call_with, evaluation_mode
from prunelab.report.tensorboard import write_hparams
from prunelab.training import PruningAtInit
from prunelab.training.resume import IN_MEMORY, read_checkpoint


def train_level(job: Job, index: int, ckpt_path: str | None = None, anew: bool = False) -> dict[str, Any]:
    """Prune, train and test one level, from its own last checkpoint if it has one; returns the record to be written.

    anew: whatever is there belongs to a former run, which the first process is about to set aside.
    """
    level = job.run_dir.level(index)
    seed_everything(job.seed, workers=True, verbose=False)
    arguments, model, data, pruning = job.instantiate()
    _share_data(job, data)
    _check_network_fits(model.net, data)
    if index > 0 and job.rewind == "finetune":
        model.drop_schedule()
    set_budget(job, index, model, pruning)
    pruning.follows_dead_weights = index + 1 < len(job.densities)
    _check_callbacks(job, pruning, arguments)
    checkpoint, step, start = None, 0, None
    if ckpt_path is not None or not anew:
        checkpoint, step = _checkpoint_to_resume(level, job.config, ckpt_path, pruning)
    if checkpoint is None and (start := build_on(job, index, model, pruning)) is not None:
        checkpoint, step = IN_MEMORY, start["global_step"]
    if checkpoint is not None:
        pruning.weights_from = None  # they are in the checkpoint
    rewind_step: int | str | None = None
    if index == 0 and job.control is None:
        rewind_step = job.tickets.rewind_step if job.tickets.has_levels else 0
    try:  # what torch and Lightning themselves object to, in one line
        model.configure_optimizers()
        prefix = _prefix(job, index)
        trainer = run_trainer(arguments, job.config, pruning, level, step, rewind_step, prefix, start)
    except (ValueError, TypeError, ModuleNotFoundError, MisconfigurationException) as error:
        raise RunError(f"optimizer, schedule or trainer: {' '.join(str(error).split())}") from error
    if trainer.is_global_zero:
        job.run_dir.create(job.config, versions(), index)
    # or its weights would stay in memory while the level trains; those who were given them let go of theirs in `fit`
    del start
    measure_ahead(job, trainer, model, data, pruning)
    # weights_only: masks and states are tensors and plain values, so nothing in a checkpoint can run code
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    record = level_record(job, index, trainer, model, data, pruning, arguments)
    write_hparams(trainer.logger, dict(job.config), record)
    return record


def _share_data(job: Job, data: LightningDataModule) -> None:
    """Pictures that an earlier level of this process has read are not read again."""
    before = job.data[-1] if job.data else None
    if isinstance(data, ImageDataModule) and isinstance(before, ImageDataModule) and data.reads_as(before):
        data.take_over(before)
    data.prepare_data()
    data.setup("fit")
    job.data[:] = [data]


def _check_callbacks(job: Job, pruning: PruningAtInit, arguments: dict[str, Any]) -> None:
    averages = any(isinstance(callback, WeightAveraging) for callback in arguments.get("callbacks") or [])
    if averages and pruning.compact and len(job.densities) > 1:
        raise RunError("pruning.compact: weight averaging keeps copies that smaller levels cannot take over")


def _prefix(job: Job, index: int) -> str:
    return f"level {index}  " if len(job.densities) > 1 else ""


def _checkpoint_to_resume(
    level: LevelDir, config: Config, given: str | None, pruning: PruningAtInit
) -> tuple[Path | None, int]:
    """The newest whole checkpoint of this config, and its optimizer step; (None, 0) if there is none to resume from.

    `pruning` takes its masks and channels: a compact network must have its size before it is restored.

    Raises: RunError if there are only damaged ones, or one of something else.
    """
    candidates = [Path(given)] if given else [level.last_checkpoint, level.previous_checkpoint]
    candidates = [path for path in candidates if path.exists()]
    damaged: list[str] = []
    for path in candidates:
        content = read_checkpoint(path)
        if content is None:
            damaged.append(str(path))
            continue
        stored = ConfigInCheckpoint.of(content)
        if stored is None:
            raise RunError(
                f"{path} was not written by a run of prunelab (to start from its weights: pruning.weights_from)"
            )
        if different := differing_keys(stored, config):
            raise RunError(f"{path} is of another configuration, they differ in {', '.join(different)}")
        instead = f" ({', '.join(damaged)} is damaged)" if damaged else ""
        for other in damaged if is_first_process() else []:  # what only another process cannot read may be whole
            Path(other).replace(f"{other}.damaged")  # out of the way: the next save would put it in place of the whole
        say(f"resuming from {path}, epoch {content['epoch'] + 1}, step {content['global_step']}{instead}", flush=True)
        pruning.resume_from(content)
        return path, content["global_step"]
    if damaged:
        raise RunError(f"damaged or no checkpoint: {', '.join(damaged)} (delete what is damaged to start anew)")
    return None, 0


def _check_network_fits(net: torch.nn.Module, data: Any) -> None:
    """One example through the network, before anything is spent on it."""
    if not hasattr(data, "example_input"):
        return
    example = data.example_input()
    shape = "x".join(map(str, example.shape[1:]))
    try:
        with evaluation_mode(net), torch.no_grad():
            outputs = call_with(net, {}, example)
    except (RuntimeError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise RunError(
            f"the network cannot take pictures of {shape} (channels x height x width): {first_line}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape != (1, data.num_classes):
        found = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise RunError(
            f"the network gives {found} outputs for a picture, the data has {data.num_classes} classes: "
            f"--model.net.num_classes {data.num_classes}"
        )
