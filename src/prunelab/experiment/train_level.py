"""One level: one training, from where it starts to its record."""

from __future__ import annotations

import copy
import pkgutil
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

import torch
from pytorch_lightning import LightningDataModule, Trainer, seed_everything
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from prunelab.compaction import count_channels
from prunelab.data import ImageDataModule
from prunelab.data.seeds import derive_seed
from prunelab.experiment.errors import RunError
from prunelab.experiment.footprint import footprint
from prunelab.experiment.job import Config, Job, is_first_process, say
from prunelab.experiment.preparation import build_on, set_budget
from prunelab.experiment.records import versions
from prunelab.experiment.run_dir import LevelDir, criterion_name, differing_keys
from prunelab.experiment.trainer import (
    ConfigInCheckpoint,
    measuring_trainer,
    out_of_time,
    run_trainer,
    seconds_training,
)
from prunelab.pruning import Masks
from prunelab.pruning.diagnostics import count_leaked, count_macs
from prunelab.pruning.preflight import Preflight
from prunelab.pruning.scoring import call_with, evaluation_mode
from prunelab.pruning.supermask import LearnedSupermask
from prunelab.report.metrics_csv import read_metrics
from prunelab.report.tensorboard import write_hparams
from prunelab.training import Classifier, PruningAtInit
from prunelab.training.network import find_network, like_weights
from prunelab.training.resume import read_checkpoint
from prunelab.training.rewind import parse_step, steps_per_epoch


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
    checkpoint, step = None, 0
    if ckpt_path is not None or not anew:
        checkpoint, step = _checkpoint_to_resume(level, job.config, ckpt_path, pruning)
    if checkpoint is None:
        checkpoint, step = build_on(job, index, model, pruning)
    if checkpoint is not None:
        pruning.weights_from = None  # they are in the checkpoint
    rewind_step: int | str | None = None
    if index == 0 and job.control is None:
        rewind_step = job.tickets.rewind_step if job.tickets.has_levels else 0
    try:  # what torch and Lightning themselves object to, in one line
        model.configure_optimizers()
        trainer = run_trainer(arguments, job.config, pruning, level, step, rewind_step, _prefix(job, index))
    except (ValueError, TypeError, ModuleNotFoundError, MisconfigurationException) as error:
        raise RunError(f"optimizer, schedule or trainer: {' '.join(str(error).split())}") from error
    if trainer.is_global_zero:
        job.run_dir.create(job.config, versions(), index)
    # weights_only: masks and states are tensors and plain values, so nothing in a checkpoint can run code
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    tested = measured(trainer, model, data, job.seed)

    if pruning.masks is None or pruning.preflight is None:
        raise RuntimeError("training ended without masks")
    record = {
        "name": job.name,
        "criterion": criterion_name(job.config),
        "level": index,
        "num_levels": len(job.densities),
        **_rewinding(job, trainer),
        "control": job.control,
        "criterion_settings": _criterion_settings(job.config),
        **{key: getattr(job.tickets, key) for key in ("mask_1", "keep_sign", "mask_0")},
        "weights_from": job.config["pruning"].get("weights_from"),
        "masks_from": None if pruning.masks_from is None else pruning.given_digest,
        **_budget(pruning.preflight),
        **_macs_held(pruning, model, data),
        "masks_digest": pruning.masks.digest(),
        "supermask_density": model.net.masks().density if isinstance(model.net, LearnedSupermask) else None,
        "leaked_weights": count_leaked(model.net, pruning.held_masks or pruning.masks, pruning.frozen),
        **_cost(job, pruning, model, data),
        "checkpoint_bytes": _checkpoint_bytes(trainer, level),
        **_last_epoch(level),
        "test_accuracy": tested.get("test_accuracy"),
        "test_loss": tested.get("test_loss"),
        **_validation_chosen(trainer, level, arguments, model, data, job.seed, tested),
        "supermask_test_accuracy": _supermask(job, index, arguments, model, pruning, data),
        "seconds_scoring": pruning.seconds_scoring,
        "seconds_training": seconds_training(trainer),
        "epochs": trainer.current_epoch,
        "max_epochs": trainer.max_epochs,
        "out_of_time": out_of_time(trainer),
        "steps": trainer.global_step,
        "seed": job.seed,
        "versions": versions(),
    }
    write_hparams(trainer.logger, dict(job.config), record)
    if trainer.is_global_zero:
        level.start_checkpoint.unlink(missing_ok=True)
    return record


def _share_data(job: Job, data: LightningDataModule) -> None:
    """Pictures that an earlier level of this process has read are not read again."""
    before = job.data[-1] if job.data else None
    if isinstance(data, ImageDataModule) and isinstance(before, ImageDataModule) and data.reads_as(before):
        data.take_over(before)
    data.prepare_data()
    data.setup("fit")
    job.data[:] = [data]


def _checkpoint_bytes(trainer: Trainer, level: LevelDir) -> int | None:
    if not trainer.is_global_zero or not level.last_checkpoint.exists():  # the first process writes the record
        return None
    return tensor_bytes(level.last_checkpoint)


def tensor_bytes(checkpoint: Path) -> int:
    """Bytes of all tensors in the file. The file's own size is no property of a run: it holds the names of directories,
    and which of its words are written out depends on whether the run was resumed."""
    with ZipFile(checkpoint) as archive:
        return sum(
            entry.file_size for entry in archive.infolist() if PurePosixPath(entry.filename).parent.name == "data"
        )


def _check_callbacks(job: Job, pruning: PruningAtInit, arguments: dict[str, Any]) -> None:
    averages = any(isinstance(callback, WeightAveraging) for callback in arguments.get("callbacks") or [])
    if averages and pruning.compact and len(job.densities) > 1:
        raise RunError("pruning.compact: weight averaging keeps copies that smaller levels cannot take over")


def _rewinding(job: Job, trainer: Trainer) -> dict[str, Any]:
    if len(job.densities) == 1 or job.rewind is None:
        return {"rewind": None, "rewind_step": None}
    steps = parse_step(job.tickets.rewind_step, steps_per_epoch(trainer))
    return {"rewind": job.rewind, "rewind_step": steps}


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


def _budget(report: Preflight) -> dict[str, Any]:
    keys = (
        *("density", "density_requested", "effective_density", "num_kept", "num_prunable", "num_parameters"),
        *("layer_densities", "collapsed_layers", "zero_score_share", "shortcut_density", "scoring_loss"),
        *("macs_dense", "macs_masked"),
    )
    return {key: getattr(report, key) for key in keys}


def _macs_held(pruning: PruningAtInit, model: Classifier, data: Any) -> dict[str, int]:
    """Multiply-adds where pruned weights hold other values than 0 (`tickets.mask_0`): these count."""
    if pruning.frozen is None or pruning.masks is None or not hasattr(data, "example_input"):
        return {}
    computed = Masks({name: mask | (pruning.frozen[name] != 0).to(mask.device) for name, mask in pruning.masks.items()})
    return {"macs_masked": count_macs(find_network(model, pruning.net), data.example_input(), computed)}


def _cost(job: Job, pruning: PruningAtInit, model: Classifier, data: Any) -> dict[str, Any]:
    """What the network that trained really costs, beside the full one if it is a compact one."""
    net, index = copy.deepcopy(find_network(model, pruning.net)), pruning.index
    net._compiled_call_impl = None  # the full one beside it is not compiled either
    cost: dict[str, Any] = {"compacted": index is not None, "not_compacted": pruning.not_compacted}
    full = None
    if index is not None and pruning.held_masks is not None:
        with isolate_rng():
            full = find_network(job.instantiate()[1], pruning.net).to(next(net.parameters()))
        cost |= {
            "num_parameters_compact": sum(parameter.numel() for parameter in net.parameters()),
            "compact_weights": pruning.held_masks.num_weights,
            "num_channels": count_channels(full),
            "num_channels_compact": count_channels(net),
        }
    if not hasattr(data, "example_input"):
        return cost
    example = like_weights(data.example_input(), net)
    if full is not None:
        cost["macs_compact"] = count_macs(net, example)
        return cost | footprint(net, example, full)
    if not job.full_footprint:  # levels differ in their masks, which are zeros that it multiplies like any number
        job.full_footprint.update(footprint(net, example))
    return cost | job.full_footprint


def _criterion_settings(config: Config) -> dict[str, Any]:
    """What the config sets otherwise than the criterion has it by itself."""
    criterion = config["pruning"].get("criterion") or {}
    if not (given := criterion.get("init_args")):
        return {}
    own = signature(pkgutil.resolve_name(criterion["class_path"])).parameters
    return {key: value for key, value in given.items() if key not in own or own[key].default != value}


def _last_epoch(level: LevelDir) -> dict[str, float | None]:
    """Of the last row of metrics.csv: a run that died between its last epoch and its record has them only there."""
    rows = read_metrics(level.metrics)
    last = rows[-1] if rows else {}
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return {name: float(last[name]) if last.get(name) else None for name in names}


def _supermask(
    job: Job,
    index: int,
    arguments: dict[str, Any],
    model: Classifier,
    pruning: PruningAtInit,
    data: LightningDataModule,
) -> float | None:
    """Test accuracy of the level's network as it was before training, if asked for; leaves it with those weights."""
    if not job.tickets.supermask or not job.prunes(index):
        return None
    state = torch.load(job.run_dir.level(index).ticket, weights_only=True)
    find_network(model, pruning.net).load_state_dict(state)
    tested = measured(measuring_trainer(arguments), model, data, job.seed)
    return tested.get("test_accuracy")


def _validation_chosen(
    trainer: Trainer,
    level: LevelDir,
    arguments: dict[str, Any],
    model: Classifier,
    data: LightningDataModule,
    seed: int,
    tested: dict[str, float],
) -> dict[str, Any]:
    """Test accuracy at the epoch of the highest validation accuracy; leaves the module with those weights.

    trainer: which has trained them. tested: the same of the last epoch, which it often is.
    """
    # the first process looks, for all: the others may not see the file yet, and the test needs all of them
    is_there = trainer.is_global_zero and level.best_checkpoint.exists()
    best = read_checkpoint(level.best_checkpoint) if is_there else None
    best = trainer.strategy.broadcast(None if best is None else {key: best[key] for key in ("state_dict", "epoch")})
    if best is None:
        return {"test_accuracy_best": None, "best_epoch": None}
    # of several processes each may have batch statistics of its own at the end, but those of the first in the file
    if trainer.world_size > 1 or not _same(model.state_dict(), best["state_dict"]):
        model.load_state_dict(best["state_dict"])
        tested = measured(measuring_trainer(arguments), model, data, seed)
    return {"test_accuracy_best": tested.get("test_accuracy"), "best_epoch": best["epoch"] + 1}


def _same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[key].cpu(), other[key]) for key in state)


def measured(
    trainer: Trainer, model: Classifier, data: LightningDataModule, seed: int, *, validate: bool = False
) -> dict[str, float]:
    """Test metrics, and those of validation if asked for: the same at every call, also of networks that draw."""
    with isolate_rng():
        torch.manual_seed(derive_seed(seed, "test"))
        results = trainer.validate(model, datamodule=data, verbose=False) if validate else []
        torch.manual_seed(derive_seed(seed, "test"))
        results = [*results, *trainer.test(model, datamodule=data, verbose=False)]
    return {name: value for part in results for name, value in part.items()}
