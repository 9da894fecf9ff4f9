"""What is known of a level once it is trained: its record."""

from __future__ import annotations

import copy
import pkgutil
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from prunelab.compaction import count_channels
from prunelab.data.seeds import derive_seed
from prunelab.experiment.footprint import footprint
from prunelab.experiment.job import Config, Job
from prunelab.experiment.records import versions
from prunelab.experiment.run_dir import LevelDir, criterion_name
from prunelab.experiment.trainer import measuring_trainer, out_of_time, seconds_training
from prunelab.pruning import Masks
from prunelab.pruning.diagnostics import count_leaked, count_macs
from prunelab.pruning.preflight import Preflight
from prunelab.pruning.supermask import LearnedSupermask
from prunelab.report.metrics_csv import read_metrics
from prunelab.training import Classifier, PruningAtInit
from prunelab.training.network import find_network, like_weights
from prunelab.training.resume import read_checkpoint
from prunelab.training.rewind import parse_step, steps_per_epoch


def level_record(
    job: Job,
    index: int,
    trainer: Trainer,
    model: Classifier,
    data: LightningDataModule,
    pruning: PruningAtInit,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """The record of the level that `trainer` has just trained; tests it. All processes have to ask, the first one's
    counts. The module is left with other weights than those of the last epoch.

    arguments: those that the Trainer was made of.
    """
    level = job.run_dir.level(index)
    tested = measured(trainer, model, data, job.seed)

    if pruning.masks is None or pruning.preflight is None:
        raise RuntimeError("training ended without masks")
    return {
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


def _rewinding(job: Job, trainer: Trainer) -> dict[str, Any]:
    if len(job.densities) == 1 or job.rewind is None:
        return {"rewind": None, "rewind_step": None}
    steps = parse_step(job.tickets.rewind_step, steps_per_epoch(trainer))
    return {"rewind": job.rewind, "rewind_step": steps}


def _criterion_settings(config: Config) -> dict[str, Any]:
    """What the config sets otherwise than the criterion has it by itself."""
    criterion = config["pruning"].get("criterion") or {}
    if not (given := criterion.get("init_args")):
        return {}
    own = signature(pkgutil.resolve_name(criterion["class_path"])).parameters
    return {key: value for key, value in given.items() if key not in own or own[key].default != value}


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
    net, index = _plain_copy(find_network(model, pruning.net)), pruning.index
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


def measure_ahead(job: Job, trainer: Trainer, model: Classifier, data: Any, pruning: PruningAtInit) -> None:
    """What the full network costs, before the first of several levels trains: the second would wait for it otherwise.

    Left to the end of the level where a network as it is now is not what will be there: a compact one, or one that
    Lightning converts; and of several processes, which may not have begun yet, or are as many as compute at once.
    """
    net = find_network(model, pruning.net)
    is_converted = not (trainer.precision == "32-true" or str(trainer.precision).endswith("-mixed"))
    is_final = not pruning.compact and not is_converted and not any(p.is_meta for p in net.parameters())
    is_asked = len(job.indices) > 1 and trainer.world_size == 1 and not job.full_footprint
    if is_asked and is_final and hasattr(data, "example_input"):
        with isolate_rng():
            job.full_footprint.update(footprint(_plain_copy(net), like_weights(data.example_input(), net)))


def _plain_copy(net: nn.Module) -> nn.Module:
    """What is measured: nothing that passes leave behind gets into the network itself, and nothing is compiled."""
    plain = copy.deepcopy(net)
    plain._compiled_call_impl = None
    return plain


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


def _last_epoch(level: LevelDir) -> dict[str, float | None]:
    """Of the last row of metrics.csv: a run that died between its last epoch and its record has them only there."""
    rows = read_metrics(level.metrics)
    last = rows[-1] if rows else {}
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return {name: float(last[name]) if last.get(name) else None for name in names}


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
