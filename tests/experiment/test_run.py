"""What a run leaves, what the user sets for its Trainer, and what cannot be."""

from __future__ import annotations

import errno
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from prunelab.data import ImageDataModule
from prunelab.data.errors import DataError
from prunelab.experiment import train_level
from prunelab.experiment.errors import RunError
from prunelab.models import mlp
from prunelab.pruning import Masks, PruningError, prune
from prunelab.pruning.criteria import snip

from .run_results import (
    LESS,
    CountSteps,
    Interrupted,
    checkpoint_of,
    events_of,
    interrupt,
    net_of,
    record_of,
    rows_of,
    same_result,
)

FILES = {
    "record.json",
    "masks.pt",
    "ticket.pt",
    "metrics.csv",
    "last.ckpt",
    "previous.ckpt",
    "best.ckpt",
    "rewind.ckpt",
}


def test_what_a_finished_run_leaves(
    experiment: Any, num_prunable: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = experiment()
    printed = capsys.readouterr().out
    assert {path.name for path in level.path.iterdir() if "tfevents" not in path.name} == FILES
    assert len(list(level.path.glob("events.out.tfevents.*"))) == 1
    assert {path.name for path in level.path.parent.iterdir()} == {"config.yaml", "versions.yaml", "level_00", "lock"}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [level.path.parent.name]
    assert printed.split()[-1] == str(level.path.parent)
    assert printed.splitlines()[-1].split()[-1] == str(level.path.parent)
    assert yaml.safe_load((level.path.parent / "config.yaml").read_text()) == experiment.config()

    record, rows = record_of(level), rows_of(level)
    last = checkpoint_of(level.last_checkpoint)
    masks = Masks.load(level.masks)
    assert masks.num_kept == 31  # .1 of 312, rounded half up
    expected = {
        **{"name": "tiny", "criterion": "snip", "seed": 0, "epochs": 3, "max_epochs": 3, "steps": 18},
        **{"density": 31 / num_prunable, "density_requested": 0.1, "num_kept": 31, "num_prunable": num_prunable},
        **{"num_parameters": num_prunable + 8 + 3, "layer_densities": masks.layer_densities()},
        **{"collapsed_layers": [], "leaked_weights": 0, "masks_digest": masks.digest(), "shortcut_density": None},
        **{"macs_dense": num_prunable, "macs_masked": 31},
    }
    assert {key: record[key] for key in expected} == expected
    assert 0 < record["effective_density"] <= record["density"]
    assert record["zero_score_share"] is not None
    assert record["scoring_loss"] > 0
    assert record["seconds_scoring"] > 0
    assert record["seconds_training"] > 0
    assert record["versions"]["torch"] == yaml.safe_load((level.path.parent / "versions.yaml").read_text())["torch"]

    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["6", "12", "18"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.05, 0.05, 0.005], rel=1e-6)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert record[name] == float(rows[-1][name])
    assert last["epoch"] == 2
    assert last["global_step"] == 18
    assert all(not last["state_dict"][f"net.{name}"][~mask].any() for name, mask in masks.items())


def test_the_masks_are_those_of_prune(experiment: Any, data: ImageDataModule) -> None:
    torch.manual_seed(0)
    net = mlp(num_classes=3, in_channels=1, image_size=6, depth=2, width=8)
    batches = data.scoring_batches()
    expected = prune(net, snip, density=0.1, example_input=data.example_input(), batches=batches)
    assert Masks.load(experiment().masks) == expected


def accuracy(net: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).float().mean())


def test_validation_chooses_and_test_reports(experiment: Any, data: ImageDataModule) -> None:
    """The last epoch and the one of the best validation accuracy are reported apart; neither looks at test data."""
    level = experiment(**{"model.optimizer.init_args.lr": 0.5, "trainer.max_epochs": 6, "pruning.density": 0.5})
    record, rows = record_of(level), rows_of(level)
    arrays = data.arrays
    test = data.normalise(arrays.test_images), arrays.test_labels
    val = data.normalise(arrays.train_images[data.val_indices]), arrays.train_labels[data.val_indices]
    last, best = net_of(checkpoint_of(level.last_checkpoint)), net_of(checkpoint_of(level.best_checkpoint))

    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert accuracies.index(max(accuracies)) + 1 == record["best_epoch"] < 6
    assert accuracy(last, *val) == pytest.approx(accuracies[-1]) == pytest.approx(record["val_accuracy"])
    assert accuracy(best, *val) == pytest.approx(max(accuracies))
    assert record["test_accuracy"] == pytest.approx(accuracy(last, *test))
    assert record["test_accuracy_best"] == pytest.approx(accuracy(best, *test))
    assert record["test_accuracy"] != record["test_accuracy_best"]


def test_weights_of_the_last_epoch_are_tested_once(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    test = Trainer.test
    monkeypatch.setattr(Trainer, "test", lambda *args, **settings: (runs.append("test"), test(*args, **settings))[1])
    record = record_of(experiment(**{"trainer.max_epochs": 1}))
    assert record["best_epoch"] == 1
    assert record["test_accuracy_best"] == record["test_accuracy"] > 0
    assert len(runs) == 1


def test_the_hparams_tab_is_filled(experiment: Any) -> None:
    """Row 32: read back, after the test."""
    level = experiment()
    record, events = record_of(level), events_of(level)
    scalars = events.Tags()["scalars"]
    for name in ("test_accuracy", "val_accuracy", "density", "effective_density", "macs_dense", "macs_masked"):
        assert events.Scalars(f"final/{name}")[-1].value == pytest.approx(record[name])
    assert events.Scalars("final/dead_layers")[-1].value == 0
    assert "val_accuracy" in scalars
    metadata = {tag: events.SummaryMetadata(tag).plugin_data for tag in ("_hparams_/session_start_info",)}
    assert metadata["_hparams_/session_start_info"].plugin_name == "hparams"
    assert b"snip" in metadata["_hparams_/session_start_info"].content.lower()


def test_results_appear_while_the_run_goes_on(experiment: Any) -> None:
    """Row 35: at the start of each epoch, those before it can be read, from both files."""
    seen = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            epoch = trainer.current_epoch
            if epoch:
                events = events_of(level)
                steps = {name: [s.step for s in events.Scalars(name)] for name in ("val_accuracy", "train_loss")}
                seen.append((epoch, len(rows_of(level)), steps))
            seen_files.append({path.name for path in level.path.iterdir() if "tfevents" not in path.name})

    level, seen_files = experiment.level(), []
    experiment.callbacks = [Look()]
    experiment()
    assert seen_files == [
        {"masks.pt", "ticket.pt", "metrics.csv", "rewind.ckpt"},
        FILES - {"record.json", "previous.ckpt"},
        FILES - {"record.json"},
    ]
    assert [(epoch, num_rows) for epoch, num_rows, _ in seen] == [(1, 1), (2, 2)]
    assert seen[0][2] == {"val_accuracy": [5], "train_loss": [5]}
    assert seen[1][2] == {"val_accuracy": [5, 11], "train_loss": [5, 11]}


def test_config_and_versions_are_there_before_anything_is_scored(experiment: Any) -> None:
    class LookAndStop(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            names = {path.name for path in experiment.level().path.parent.iterdir()}
            assert names == {"config.yaml", "versions.yaml", "level_00", "lock"}
            raise Interrupted

    experiment.callbacks = [LookAndStop()]
    with pytest.raises(Interrupted):
        experiment()
    assert yaml.safe_load((experiment.level().path.parent / "config.yaml").read_text()) == experiment.config()


def test_nothing_is_said_that_a_user_cannot_act_upon(
    experiment: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger("pytorch_lightning").level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        experiment(**LESS)
        experiment()
        experiment(**{"data.init_args.val_size": 0})
    assert [str(warning.message) for warning in caught] == []
    assert not caplog.records
    assert capsys.readouterr().err == ""
    assert logging.getLogger("pytorch_lightning").level == level


def test_seed_0_is_a_seed(experiment: Any) -> None:
    one, other = experiment(**LESS), experiment(seed_everything=1, **LESS)
    first = record_of(one)
    assert first["seed"] == 0
    assert first["masks_digest"] != record_of(other)["masks_digest"]
    again = type(experiment)(experiment.directory / "again")
    torch.manual_seed(123)
    same_result(one, again(**LESS))


def test_time_can_be_limited(experiment: Any) -> None:
    level = experiment(**{"trainer.max_time": "00:00:00:00", "trainer.max_epochs": 50})
    assert record_of(level)["epochs"] < 50
    assert record_of(level)["out_of_time"]


def test_a_run_that_ran_out_of_time_goes_on(experiment: Any) -> None:
    experiment(**{"trainer.max_time": "00:00:00:00"})
    level = experiment(**{"trainer.max_time": None})
    assert record_of(level)["epochs"] == 3
    assert not record_of(level)["out_of_time"]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions_get_to_their_record(precision: str, experiment: Any) -> None:
    level = experiment(**{"trainer.precision": precision})
    assert record_of(level)["leaked_weights"] == 0
    assert record_of(level)["latency_ms"] > 0


def test_a_run_refused_by_its_data_leaves_nothing(experiment: Any) -> None:
    with pytest.raises(DataError, match="samples_per_class is 1000"):
        experiment(**{"pruning.samples_per_class": 1000})
    assert not experiment.directory.exists() or list(experiment.directory.iterdir()) == []


def test_validation_every_second_epoch(experiment: Any) -> None:
    """The last epoch is saved all the same; what was not measured in it is not in the record."""
    changes = {"trainer.check_val_every_n_epoch": 2}
    level = experiment(**changes)
    assert checkpoint_of(level.last_checkpoint)["epoch"] == 2
    assert [row["val_accuracy"] != "" for row in rows_of(level)] == [False, True, False]
    assert record_of(level)["val_accuracy"] is None
    assert record_of(level)["best_epoch"] == 2


def test_without_validation_there_is_no_best_epoch(experiment: Any) -> None:
    level = experiment(**{"data.init_args.val_size": 0})
    record = record_of(level)
    assert record["val_accuracy"] is record["test_accuracy_best"] is record["best_epoch"] is None
    assert record["test_accuracy"] is not None
    assert not level.best_checkpoint.exists()


def test_without_a_test_there_is_a_record(experiment: Any) -> None:
    assert record_of(experiment(**{"trainer.limit_test_batches": 0}))["test_accuracy"] is None


def test_density_1_is_a_run_too(experiment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    level = experiment(**{"pruning.density": 1.0})
    record = record_of(level)
    assert record["density"] == record["effective_density"] == 1.0
    assert record["zero_score_share"] is None
    assert capsys.readouterr().out.split()[-1] == str(level.path.parent)


class Look(Callback):
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.root, self.loggers = trainer.default_root_dir, trainer.loggers


def test_no_logger_means_none(experiment: Any) -> None:
    level = experiment(**LESS, **{"trainer.logger": False})
    assert not list(level.path.glob("events*"))
    assert len(rows_of(level)) == 2


def test_what_the_user_set_stays(
    experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look = Look()
    experiment.callbacks = [look]
    level = experiment(**LESS)
    assert look.root == str(level.path)

    logger = CSVLogger(tmp_path / "own")
    run_trainer = train_level.run_trainer
    # an object: no part of a config that can be written
    monkeypatch.setattr(
        train_level, "run_trainer", lambda given, *rest: run_trainer({**given, "logger": logger}, *rest)
    )
    experiment(**LESS, **{"trainer.default_root_dir": str(tmp_path / "root"), "seed_everything": 3})
    assert "warning: the trainer has no TensorBoardLogger" in capsys.readouterr().err
    assert look.loggers == [logger]
    assert look.root == str(tmp_path / "root")
    assert (Path(logger.log_dir) / "metrics.csv").exists()


@pytest.mark.parametrize("blocked", ["runs", "run directory"])
def test_a_directory_that_cannot_be_written(blocked: str, experiment: Any) -> None:
    place = experiment.directory if blocked == "runs" else experiment.level().path.parent
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    steps = CountSteps()
    experiment.callbacks = [steps]
    with pytest.raises(RunError, match="cannot be written"):
        experiment()
    assert steps.count == 0
    assert place.is_file()


def test_a_full_disk_leaves_what_was_saved(experiment: Any, tmp_path: Path) -> None:
    whole = type(experiment)(tmp_path / "whole")()
    level = interrupt(experiment, 1)
    before = level.last_checkpoint.read_bytes()
    (level.path / "last.ckpt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"last\.ckpt") as caught:
        experiment()
    assert caught.value.errno == errno.ENOSPC
    assert level.last_checkpoint.read_bytes() == before
    experiment()  # the disk has room again
    same_result(level, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.net.init_args.image_size": 8},
            r"the network cannot take pictures of 1x6x6 \(channels x height x width\)",
        ),
        ({"model.net.init_args.in_channels": 3}, r"the network cannot take pictures of 1x6x6"),
        ({"model.net.init_args.num_classes": 7}, "data has 3 classes: --model.net.num_classes 3"),
        ({"trainer.max_epochs": None}, "say how long to train"),
    ],
)
def test_what_does_not_fit_is_said_before_training(changes: dict[str, Any], message: str, experiment: Any) -> None:
    with pytest.raises(RunError, match=message) as caught:
        experiment(**changes)
    assert "\n" not in str(caught.value)
    assert not experiment.level(**changes).last_checkpoint.exists()


def test_a_network_without_a_path_leaves_nothing(experiment: Any) -> None:
    changes = {"pruning.density": 0.004, "model.net.init_args.depth": 6}
    for _ in range(2):
        with pytest.raises(PruningError, match="no path leads"):
            experiment(**changes)
    assert not list(experiment.directory.iterdir())
