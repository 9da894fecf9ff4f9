"""One run: from its config to its record. Interrupted, the same call goes on; finished, it shows the table."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, seed_everything
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import Tensor

from prunelab.data.errors import DataError
from prunelab.experiment.errors import RunError
from prunelab.experiment.footprint import footprint
from prunelab.experiment.records import read_record, versions, write_record
from prunelab.experiment.run_dir import LevelDir, RunDir, differing_keys
from prunelab.experiment.trainer import (
    ConfigInCheckpoint,
    measuring_trainer,
    out_of_time,
    quiet_libraries,
    run_trainer,
    seconds_training,
)
from prunelab.names import short_name
from prunelab.pruning import PruningError
from prunelab.pruning.diagnostics import count_leaked
from prunelab.pruning.preflight import Preflight
from prunelab.pruning.scoring import call_with, evaluation_mode
from prunelab.report.metrics_csv import read_metrics
from prunelab.report.table import run_table
from prunelab.report.tensorboard import write_hparams
from prunelab.training import Classifier, PruningAtInit
from prunelab.training.resume import read_checkpoint

Config = Mapping[str, Any]
Instantiate = Callable[[], tuple[dict[str, Any], Classifier, LightningDataModule, PruningAtInit]]

# of several processes the first one speaks
_say = rank_zero_only(print)


def run(name: str, config: Config, instantiate: Instantiate, output_dir: str, ckpt_path: str | None = None) -> int:
    """Prune, train and test what `config` says, in the directory that its values name; returns the exit code.

    name: of the config, first word of the directory's name. instantiate: makes fresh Trainer arguments, module, data
    module and pruning callback. ckpt_path: a checkpoint of this config to go on from, instead of the run's own.
    Raises: RunError for a directory, checkpoint or network that does not go with the config; SystemExit with 128 + its
    number when a signal ends the training, which the same call then takes up after the last whole epoch.
    """
    if config["trainer"].get("max_epochs") is None and config["trainer"].get("max_steps", -1) == -1:
        raise RunError("say how long to train: --trainer.max_epochs or --trainer.max_steps")
    run_dir = RunDir.of(output_dir, name, config)
    level = run_dir.level(0)
    record = read_record(level.record)
    if record is not None and not _wants_more(record, config):
        asked = config["trainer"].get("max_epochs")
        if asked is not None and asked < record["epochs"]:
            raise RunError(
                f"{run_dir.path} has already trained {record['epochs']} epochs, more than the {asked} asked for: "
                "give another --output_dir"
            )
        _say(f"finished earlier, nothing to do (--trainer.max_epochs above {record['max_epochs']} trains on)\n")
        _say(run_table(record, str(run_dir.path)))
        return 0
    checkpoint, step = _checkpoint_to_resume(level, config, ckpt_path)
    is_new = not run_dir.path.exists()
    try:
        with quiet_libraries():
            record = _train(name, config, instantiate, run_dir, checkpoint, step)
    except (PruningError, DataError, RunError):
        if is_new:  # refused before the first step: a directory without a result would only be in the way
            run_dir.remove_unstarted()
        raise
    _say(f"\n{run_table(record, str(run_dir.path))}")
    return 0


def evaluate(run_dir: Path, instantiate: Instantiate) -> dict[str, float]:
    """Accuracies of the run's last checkpoint, measured anew. Raises: RunError if the checkpoint cannot be read."""
    level = RunDir(run_dir).level(0)
    content = read_checkpoint(level.last_checkpoint) if level.last_checkpoint.exists() else None
    if content is None:
        raise RunError(f"{level.last_checkpoint} is missing or damaged")
    with quiet_libraries():
        arguments, model, data, _ = instantiate()
        model.load_state_dict(content["state_dict"])
        data.setup("fit")  # validation alone would not know the split
        trainer = measuring_trainer(arguments)
        validated = trainer.validate(model, datamodule=data, verbose=False) if data.val_dataloader() else []
        return _joined([*validated, *trainer.test(model, datamodule=data, verbose=False)])


def _train(
    name: str, config: Config, instantiate: Instantiate, run_dir: RunDir, checkpoint: Path | None, step: int
) -> dict[str, Any]:
    level = run_dir.level(0)
    seed = config["seed_everything"]
    seed_everything(seed, workers=True, verbose=False)
    arguments, model, data, pruning = instantiate()
    data.prepare_data()
    data.setup("fit")
    _check_network_fits(model.net, data)
    try:  # what torch and Lightning themselves object to, in one line and before anything is written
        model.configure_optimizers()
        trainer = run_trainer(arguments, config, pruning, level, step)
    except (ValueError, TypeError, ModuleNotFoundError, MisconfigurationException) as error:
        raise RunError(f"optimizer, schedule or trainer: {' '.join(str(error).split())}") from error
    if trainer.is_global_zero:
        run_dir.create(config, versions())
    # weights_only: masks and states are tensors and plain values, so nothing in a checkpoint can run code
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as end:  # Lightning's own exit codes are 0 after SIGTERM and 1 after SIGINT
        number = signal.SIGTERM if isinstance(end, SIGTERMException) else signal.SIGINT
        raise SystemExit(128 + number) from end
    tested = _joined(trainer.test(model, datamodule=data, verbose=False))

    if pruning.masks is None or pruning.preflight is None:
        raise RuntimeError("training ended without masks")
    record = {
        "name": name,
        "criterion": short_name("pruning.criterion", config["pruning"]["criterion"]["class_path"]),
        **_budget(pruning.preflight),
        "masks_digest": pruning.masks.digest(),
        "leaked_weights": count_leaked(model.net, pruning.masks),
        **(footprint(model.net, data.example_input()) if hasattr(data, "example_input") else {}),
        **_last_epoch(level),
        "test_accuracy": tested.get("test_accuracy"),
        "test_loss": tested.get("test_loss"),
        **_validation_chosen(level, arguments, model, data),
        "seconds_scoring": pruning.seconds_scoring,
        "seconds_training": seconds_training(trainer),
        "epochs": trainer.current_epoch,
        "max_epochs": trainer.max_epochs,
        "out_of_time": out_of_time(trainer),
        "steps": trainer.global_step,
        "seed": seed,
        "versions": versions(),
    }
    if trainer.is_global_zero:
        write_record(level.record, record)
    write_hparams(trainer.logger, dict(config), record)
    return record


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
        _say(f"resuming from {path}, epoch {content['epoch'] + 1}, step {content['global_step']}{instead}", flush=True)
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


def _validation_chosen(
    level: LevelDir, arguments: dict[str, Any], model: Classifier, data: LightningDataModule
) -> dict[str, Any]:
    """Test accuracy at the epoch of the highest validation accuracy; leaves the module with those weights."""
    best = read_checkpoint(level.best_checkpoint) if level.best_checkpoint.exists() else None
    if best is None:
        return {"test_accuracy_best": None, "best_epoch": None}
    model.load_state_dict(best["state_dict"])
    tested = _joined(measuring_trainer(arguments).test(model, datamodule=data, verbose=False))
    return {"test_accuracy_best": tested.get("test_accuracy"), "best_epoch": best["epoch"] + 1}


def _joined(metrics: Iterable[Mapping[str, float]]) -> dict[str, float]:
    return {name: value for part in metrics for name, value in part.items()}


def _wants_more(record: Mapping[str, Any], config: Config) -> bool:
    """Whether a run with a record is asked for more epochs than it was asked for then, or ran out of its max_time."""
    asked = config["trainer"].get("max_epochs")
    if asked is None:
        return False
    return asked > record["max_epochs"] or (record["out_of_time"] and asked > record["epochs"])
