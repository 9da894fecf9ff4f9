"""One level: one training, from where it starts to its record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, seed_everything
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from prunelab.data.seeds import derive_seed
from prunelab.experiment.controls import Corrupted, Inverted, random_masks, shuffled_masks
from prunelab.experiment.errors import RunError
from prunelab.experiment.footprint import footprint
from prunelab.experiment.levels import Tickets, density_of_whole
from prunelab.experiment.records import versions, write_record
from prunelab.experiment.run_dir import (
    LevelDir,
    RunDir,
    criterion_name,
    differing_keys,
    find_masks,
    find_weights,
    spelled_density,
)
from prunelab.experiment.trainer import (
    ConfigInCheckpoint,
    measuring_trainer,
    out_of_time,
    run_trainer,
    seconds_training,
)
from prunelab.pruning import Masks, prunable_names
from prunelab.pruning.diagnostics import count_leaked
from prunelab.pruning.preflight import Preflight
from prunelab.pruning.scoring import call_with, evaluation_mode
from prunelab.pruning.supermask import LearnedSupermask
from prunelab.report.metrics_csv import read_metrics
from prunelab.report.tensorboard import write_hparams
from prunelab.training import Classifier, PruningAtInit
from prunelab.training.network import find_network
from prunelab.training.pruning_at_init import Ticket, load_masks
from prunelab.training.resume import AtomicCheckpointIO, read_checkpoint
from prunelab.training.rewind import parse_step, start_checkpoint, steps_per_epoch

Config = Mapping[str, Any]
Instantiate = Callable[[], tuple[dict[str, Any], Classifier, LightningDataModule, PruningAtInit]]

# of several processes the first one speaks
say = rank_zero_only(print)


@dataclass(frozen=True)
class Job:
    """What all levels of a run share.

    densities: of each level, level 0 first; None for masks from elsewhere. num_dense: how many levels come before the
    first pruned one, 0 or 1. ticket_dir: the run whose rewind point and levels this one builds on, itself unless it is
    a control.
    """

    name: str
    config: Config
    instantiate: Instantiate
    run_dir: RunDir
    ticket_dir: RunDir
    tickets: Tickets
    densities: list[float | None]
    num_dense: int

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

    def prunes(self, index: int) -> bool:
        return index >= self.num_dense and self.control != "dense"

    def level_before(self, index: int) -> LevelDir:
        """The level that the one at `index` builds on. A dense control goes on from its own weights."""
        is_own = self.control == "dense" and index - 1 in self.indices
        return (self.run_dir if is_own else self.ticket_dir).level(index - 1)


def train_level(job: Job, index: int, ckpt_path: str | None = None) -> dict[str, Any]:
    """Prune, train and test one level, from its own last checkpoint if there is one; returns its record."""
    level = job.run_dir.level(index)
    fresh = _drawn_anew(job) if "reinit" in (job.control, job.tickets.mask_1) else None
    seed_everything(job.seed, workers=True, verbose=False)
    arguments, model, data, pruning = job.instantiate()
    data.prepare_data()
    data.setup("fit")
    _check_network_fits(model.net, data)
    if job.control == "reinit" and fresh is not None:
        model.load_state_dict(fresh)
    checkpoint, step = _checkpoint_to_resume(level, job.config, ckpt_path)
    if checkpoint is None:
        checkpoint, step = _write_start(job, index)
    if index > 0 and job.tickets.rewind == "finetune":
        model.drop_schedule()
    pruning.weights_from = _weights_from(job, checkpoint)
    if pruning.masks_from is not None:
        pruning.given = _masks_from(pruning.masks_from, checkpoint)
    else:
        _prepare_pruning(job, index, model, pruning, fresh)
    rewind_step = None if index > 0 or job.control else job.tickets.rewind_step
    try:  # what torch and Lightning themselves object to, in one line and before anything is written
        model.configure_optimizers()
        trainer = run_trainer(arguments, job.config, pruning, level, step, rewind_step, _prefix(job, index))
    except (ValueError, TypeError, ModuleNotFoundError, MisconfigurationException) as error:
        raise RunError(f"optimizer, schedule or trainer: {' '.join(str(error).split())}") from error
    if trainer.is_global_zero:
        job.run_dir.create(job.config, versions(), index)
    # weights_only: masks and states are tensors and plain values, so nothing in a checkpoint can run code
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    tested = joined(trainer.test(model, datamodule=data, verbose=False))

    if pruning.masks is None or pruning.preflight is None:
        raise RuntimeError("training ended without masks")
    record = {
        "name": job.name,
        "criterion": criterion_name(job.config),
        "level": index,
        "num_levels": len(job.densities),
        "rewind": job.tickets.rewind if len(job.densities) > 1 else None,
        "rewind_step": parse_step(job.tickets.rewind_step, steps_per_epoch(trainer))
        if len(job.densities) > 1
        else None,
        "control": job.control,
        "masks_from": None if pruning.masks_from is None else pruning.given_digest,
        **_budget(pruning.preflight),
        "masks_digest": pruning.masks.digest(),
        "supermask_density": model.net.masks().density if isinstance(model.net, LearnedSupermask) else None,
        "leaked_weights": count_leaked(model.net, pruning.masks, pruning.frozen),
        **(footprint(model.net, data.example_input()) if hasattr(data, "example_input") else {}),
        **_last_epoch(level),
        "test_accuracy": tested.get("test_accuracy"),
        "test_loss": tested.get("test_loss"),
        **_validation_chosen(level, arguments, model, data),
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
    if trainer.is_global_zero:
        write_record(level.record, record)
        level.start_checkpoint.unlink(missing_ok=True)
    write_hparams(trainer.logger, dict(job.config), record)
    return record


def _prefix(job: Job, index: int) -> str:
    return f"level {index}  " if len(job.densities) > 1 else ""


def _drawn_anew(job: Job) -> dict[str, Tensor]:
    """Weights from the distribution of the run's own, and from other draws."""
    seed_everything(derive_seed(job.seed, "reinit") % 2**32, verbose=False)
    return job.instantiate()[1].state_dict()


def _write_start(job: Job, index: int) -> tuple[Path | None, int]:
    """The checkpoint that a level starts from and its optimizer step; (None, 0) if it starts like any training."""
    if index == 0 or job.control == "reinit" or _starts_unpruned(job):
        return None, 0
    mode = "learning_rate" if job.control == "dense" else job.tickets.rewind
    rewind = _read(job.ticket_dir.level(0).rewind_checkpoint)
    start = start_checkpoint(rewind, _read(job.level_before(index).last_checkpoint), mode)
    path = job.run_dir.level(index).start_checkpoint
    AtomicCheckpointIO().save_checkpoint(start, path)
    say(f"level {index}: from step {start['global_step']}, rewind: {mode}", flush=True)
    return path, start["global_step"]


def _starts_unpruned(job: Job) -> bool:
    """Whether a control starts from the initialisation, as the ticket's rewind point is pruned already.

    Raises: RunError if that rewind point lies inside the training, where the pruned weights have no values.
    """
    if job.control in (None, "dense") or job.num_dense or job.tickets.rewind != "weights":
        return False
    if str(job.tickets.rewind_step).rstrip("itep") != "0":
        raise RunError(
            f"control {job.control}: the ticket was pruned before its rewind point, which lacks the weights that the "
            "control would keep; there is only one with tickets.dense_first true or tickets.rewind_step 0"
        )
    return True


def _prepare_pruning(
    job: Job, index: int, model: Classifier, pruning: PruningAtInit, fresh: Mapping[str, Tensor] | None
) -> None:
    """Tell the callback of a level how dense it is and what it builds on."""
    if not job.prunes(index):
        pruning.density = 1.0
        return
    net = find_network(model, pruning.net)
    _set_budget(job, index, net, pruning)
    own = _of_network(pruning.net)
    asked = job.tickets
    pruning.ticket = Ticket(
        mask_1=asked.mask_1, keep_sign=asked.keep_sign, mask_0=asked.mask_0, fresh=None if fresh is None else own(fresh)
    )
    if index > 0:
        before = job.level_before(index)
        pruning.ticket = replace(
            pruning.ticket,
            masks=Masks.load(before.masks),
            weights=own(_read(before.last_checkpoint)["state_dict"]),
            initial=own(_read(job.ticket_dir.level(0).rewind_checkpoint)["state_dict"]),
        )
    if job.control:
        _apply_control(job, index, net, pruning)


def _set_budget(job: Job, index: int, net: nn.Module, pruning: PruningAtInit) -> None:
    parameters = dict(net.named_parameters())
    sizes = {name: parameters[name].numel() for name in prunable_names(net, pruning.include, pruning.exclude)}
    allocations = job.tickets.layer_allocations(spelled_density(job.config), sizes)
    pruning.density = job.densities[index]
    if allocations is not None:
        pruning.allocation = allocations[index - job.num_dense]
        pruning.density = density_of_whole(pruning.allocation, sizes)


def _apply_control(job: Job, index: int, net: nn.Module, pruning: PruningAtInit) -> None:
    """Change the one thing that the control changes."""
    masks = Masks.load(job.ticket_dir.level(index).masks)
    if pruning.criterion is None:
        raise RunError(f"control {job.control} needs a criterion: its ticket has masks from elsewhere")
    changed: Any  # has what a criterion has, but not by its class
    if job.control == "invert":
        changed = Inverted(pruning.criterion)
        pruning.criterion = changed
        pruning.allocation, pruning.density = masks.layer_densities(), masks.density
    elif job.control in ("corrupt_labels", "corrupt_pixels"):
        what: Any = job.control.removeprefix("corrupt_")
        changed = Corrupted(pruning.criterion, what, derive_seed(job.seed, "control"))
        pruning.criterion = changed
    else:
        # with weights from the level before, what that level pruned is 0
        goes_on = index > 0 and job.tickets.rewind != "weights"
        within = Masks.load(job.level_before(index).masks) if goes_on else Masks.dense(net, masks)
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "control", index))
        draw = {"random": random_masks, "shuffle": shuffled_masks}.get(job.control or "")
        pruning.given = draw(masks, within, generator) if draw else masks


def _of_network(path: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """What picks the network's part out of the state dict of the LightningModule that holds it at `path`."""
    dotted = f"{path}." if path else ""

    def own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix(dotted): value for name, value in state.items() if name.startswith(dotted)}

    return own


def _read(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if content is None:
        raise RunError(f"{path} is missing or damaged: --fresh starts anew")
    return content


def _checkpoint_to_resume(level: LevelDir, config: Config, given: str | None) -> tuple[Path | None, int]:
    """The newest whole checkpoint of this config, and its optimizer step; (None, 0) if there is none to resume from.

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
        say(f"resuming from {path}, epoch {content['epoch'] + 1}, step {content['global_step']}{instead}", flush=True)
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


def _last_epoch(level: LevelDir) -> dict[str, float | None]:
    """Of the last row of metrics.csv: a run that died between its last epoch and its record has them only there."""
    rows = read_metrics(level.metrics)
    last = rows[-1] if rows else {}
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return {name: float(last[name]) if last.get(name) else None for name in names}


def _masks_from(path: str, checkpoint: Path | None) -> Masks | None:
    """The masks at `path`; None if they are gone when a run is resumed, which has them in its checkpoint."""
    if checkpoint is not None and not Path(path).exists():
        return None
    return load_masks(str(find_masks(path)))


def _weights_from(job: Job, checkpoint: Path | None) -> str | None:
    """The file that the network's weights come from; None if they are in the checkpoint, or drawn anew by a control."""
    path = job.config["pruning"].get("weights_from")
    if path is None or checkpoint is not None or job.control == "reinit":
        return None
    return str(find_weights(path))


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
    tested = joined(measuring_trainer(arguments).test(model, datamodule=data, verbose=False))
    return tested.get("test_accuracy")


def _validation_chosen(
    level: LevelDir, arguments: dict[str, Any], model: Classifier, data: LightningDataModule
) -> dict[str, Any]:
    """Test accuracy at the epoch of the highest validation accuracy; leaves the module with those weights."""
    best = read_checkpoint(level.best_checkpoint) if level.best_checkpoint.exists() else None
    if best is None:
        return {"test_accuracy_best": None, "best_epoch": None}
    model.load_state_dict(best["state_dict"])
    tested = joined(measuring_trainer(arguments).test(model, datamodule=data, verbose=False))
    return {"test_accuracy_best": tested.get("test_accuracy"), "best_epoch": best["epoch"] + 1}


def joined(metrics: Iterable[Mapping[str, float]]) -> dict[str, float]:
    return {name: value for part in metrics for name, value in part.items()}
