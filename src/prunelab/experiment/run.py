"""One run: from its config to its record. Interrupted, the same call goes on; finished, it shows the table."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar, Timer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from prunelab.experiment.errors import RunError
from prunelab.experiment.records import read_record, versions, write_record
from prunelab.experiment.run_dir import LevelDir, RunDir, differing_keys
from prunelab.names import short_name
from prunelab.pruning import Masks
from prunelab.pruning.diagnostics import count_leaked
from prunelab.pruning.preflight import Preflight
from prunelab.pruning.scoring import call_with, evaluation_mode
from prunelab.report.metrics_csv import MetricsCsv, read_metrics
from prunelab.report.progress import EpochLines, PruningProgress
from prunelab.report.table import run_table
from prunelab.report.tensorboard import PruningSummary, write_hparams
from prunelab.training import Classifier, KeepPruned, PruningAtInit
from prunelab.training.resume import AtomicCheckpointIO, SaveRandomState, read_checkpoint

Config = Mapping[str, Any]
Instantiate = Callable[[], tuple[dict[str, Any], Classifier, LightningDataModule, PruningAtInit]]


def run(name: str, config: Config, instantiate: Instantiate, output_dir: str, ckpt_path: str | None = None) -> int:
    """Prune, train and test what `config` says, in the directory that its values name; returns the exit code.

    name: of the config, first word of the directory's name. instantiate: makes fresh Trainer arguments, module, data
    module and pruning callback. ckpt_path: a checkpoint of this config to go on from, instead of the run's own.
    Raises: RunError for a directory, checkpoint or network that does not go with the config.
    """
    if config["trainer"].get("max_epochs") is None and config["trainer"].get("max_steps", -1) == -1:
        raise RunError("say how long to train: --trainer.max_epochs or --trainer.max_steps")
    run_dir = RunDir.of(output_dir, name, config)
    level = run_dir.level(0)
    record = read_record(level.record)
    if record is not None and not _wants_more(record, config):
        print(f"finished earlier, nothing to do (--trainer.max_epochs above {record['epochs']} trains on)\n")
        print(run_table(record, str(run_dir.path)))
        return 0
    run_dir.create(config, versions())
    checkpoint = _checkpoint_to_resume(level, config, ckpt_path)
    with _quiet_libraries():
        record = _train(name, config, instantiate, level, checkpoint)
    print()
    print(run_table(record, str(run_dir.path)))
    return 0


def evaluate(run_dir: Path, instantiate: Instantiate) -> dict[str, float]:
    """Accuracies of the run's last checkpoint, measured anew. Raises: RunError if the checkpoint cannot be read."""
    level = RunDir(run_dir).level(0)
    content = read_checkpoint(level.last_checkpoint) if level.last_checkpoint.exists() else None
    if content is None:
        raise RunError(f"{level.last_checkpoint} is missing or damaged")
    with _quiet_libraries():
        arguments, model, data, _ = instantiate()
        model.load_state_dict(content["state_dict"])
        return _measure(arguments, model, data)


def _train(
    name: str, config: Config, instantiate: Instantiate, level: LevelDir, checkpoint: Path | None
) -> dict[str, Any]:
    seed = config["seed_everything"]
    seed_everything(seed, workers=True, verbose=False)
    arguments, model, data, pruning = instantiate()
    data.prepare_data()
    data.setup("fit")
    _check_network_fits(model.net, data)
    step = 0 if checkpoint is None else (read_checkpoint(checkpoint) or {})["global_step"]
    timer = Timer(verbose=False)
    callbacks = [pruning, KeepPruned(), timer, _ConfigInCheckpoint(config), _SaveMasks(level.masks)]
    trainer = Trainer(**_trainer_arguments(arguments, level, callbacks, step))
    # weights_only: masks and states are tensors and plain values, so nothing in a checkpoint can run code
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    tested = trainer.test(model, datamodule=data, verbose=False)[0]

    if pruning.masks is None or pruning.preflight is None:
        raise RuntimeError("training ended without masks")
    record = {
        "name": name,
        "criterion": short_name("pruning.criterion", config["pruning"]["criterion"]["class_path"]),
        **_budget(pruning.preflight),
        "masks_digest": pruning.masks.digest(),
        "leaked_weights": count_leaked(model.net, pruning.masks),
        **_last_epoch(level),
        "test_accuracy": tested["test_accuracy"],
        "test_loss": tested["test_loss"],
        **_validation_chosen(level, arguments, model, data),
        "seconds_scoring": pruning.seconds_scoring,
        "seconds_training": timer.time_elapsed("train"),
        "epochs": trainer.current_epoch,
        "max_epochs": trainer.max_epochs,
        "steps": trainer.global_step,
        "seed": seed,
        "versions": versions(),
    }
    write_record(level.record, record)
    write_hparams(trainer.logger, dict(config), record)
    return record


def _trainer_arguments(
    arguments: dict[str, Any], level: LevelDir, callbacks: list[Callback], step: int
) -> dict[str, Any]:
    """The user's Trainer arguments, completed by what makes a run complete; what the user set stays."""
    bars = sys.stdout.isatty() and arguments.get("enable_progress_bar") is not False
    checkpoints = {"dirpath": level.path, "enable_version_counter": False, "auto_insert_metric_name": False}
    ours = [
        *callbacks,
        SaveRandomState(),
        PruningProgress(),
        PruningSummary(),
        MetricsCsv(level.metrics),
        RichProgressBar() if bars else EpochLines(),
        _BestCheckpoint(filename="best", monitor="val_accuracy", mode="max", **checkpoints),
        ModelCheckpoint(filename="last", **checkpoints),
    ]
    loggers = arguments.get("logger")
    if loggers is None or loggers is True:
        # default_hp_metric: Lightning's own placeholder would take the place of ours in the hparams tab
        loggers = TensorBoardLogger(
            level.path, name="", version="", default_hp_metric=False, purge_step=step or None, flush_secs=5
        )
    defaults = {"enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    return {
        **arguments,
        **{key: value for key, value in defaults.items() if arguments.get(key) is None},
        "callbacks": [*ours, *_as_list(arguments.get("callbacks"))],
        "plugins": [AtomicCheckpointIO(), *_as_list(arguments.get("plugins"))],
        "logger": loggers,
        "enable_progress_bar": bars,
        "default_root_dir": level.path,
    }


def _checkpoint_to_resume(level: LevelDir, config: Config, given: str | None) -> Path | None:
    """The newest whole checkpoint of this config. Raises: RunError if there are only damaged ones."""
    candidates = [Path(given)] if given else [level.last_checkpoint, level.previous_checkpoint]
    candidates = [path for path in candidates if path.exists()]
    for path in candidates:
        content = read_checkpoint(path)
        if content is None:
            print(f"{path} is damaged", file=sys.stderr)
            continue
        stored = content.get("callbacks", {}).get("_ConfigInCheckpoint")
        if stored is None:
            raise RunError(f"{path} was not written by a run of prunelab (to start from its weights: pruning.weights_from)")
        if different := differing_keys(json.loads(stored["config"]), config):
            raise RunError(f"{path} is of another configuration, they differ in {', '.join(different)}")
        print(f"resuming from {path}, epoch {content['epoch'] + 1}, step {content['global_step']}", flush=True)
        return path
    if candidates:
        raise RunError(f"no whole checkpoint among {', '.join(map(str, candidates))}: delete them to start anew")
    return None


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
        raise RunError(f"the network cannot take pictures of {shape} (channels x height x width): {first_line}") from error
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
    return {"test_accuracy_best": _measure(arguments, model, data)["test_accuracy"], "best_epoch": best["epoch"] + 1}


def _measure(arguments: dict[str, Any], model: Classifier, data: LightningDataModule) -> dict[str, float]:
    own = ("accelerator", "strategy", "devices", "num_nodes", "precision", "limit_test_batches", "limit_val_batches")
    trainer = Trainer(
        **{key: arguments[key] for key in own if key in arguments},
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data.setup("fit")
    validated = trainer.validate(model, datamodule=data, verbose=False) if data.val_dataloader() else [{}]
    tested = trainer.test(model, datamodule=data, verbose=False)
    return {**validated[0], **tested[0]}


def _wants_more(record: Mapping[str, Any], config: Config) -> bool:
    """Whether a finished run is asked for more epochs or steps than it was trained for."""
    epochs, steps = config["trainer"].get("max_epochs"), config["trainer"].get("max_steps", -1)
    return (epochs is not None and epochs > record["max_epochs"]) or (steps != -1 and steps > record["steps"])


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without Lightning's remarks about hardware, and about loaders without workers: ours need none."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*Checkpoint directory.*exists and is not empty.*"):
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, before in zip(loggers, levels, strict=True):
                logger.setLevel(before)


class _ConfigInCheckpoint(Callback):
    """What the checkpoint was made by, to refuse it to another configuration."""

    def __init__(self, config: Config) -> None:
        self._config = json.dumps(config)

    def state_dict(self) -> dict[str, str]:
        return {"config": self._config}


class _SaveMasks(Callback):
    """masks.pt, as soon as the masks exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_pruned(
        self, trainer: Trainer, pl_module: LightningModule, preflight: Preflight, scores: Any, masks: Masks
    ) -> None:
        if trainer.is_global_zero:
            temporary = self._path.with_suffix(".tmp")
            masks.save(temporary)
            temporary.replace(self._path)


class _BestCheckpoint(ModelCheckpoint):
    """The epoch of the highest validation accuracy; without validation there is none."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "val_accuracy" in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "val_accuracy" in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)
