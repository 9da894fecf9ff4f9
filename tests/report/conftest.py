"""A tiny pruned training for the callbacks of report/: random images, two convolutions, SynFlow in a few rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from prunelab.pruning import Masks, prune
from prunelab.pruning.criteria import synflow
from prunelab.pruning.preflight import preflight
from prunelab.report.tidy import FinishedCell

EXAMPLE_INPUT = torch.ones(1, 1, 6, 6)


def tiny_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


class TinyClassifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("lr", self.optimizers().param_groups[0]["lr"], on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        outputs = self.net(batch[0])
        self.log("val_loss", cross_entropy(outputs, batch[1]))
        self.log("val_accuracy", (outputs.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)}


class PruneAtStart(Callback):
    """Calls the other callbacks as PruningAtInit does: after each round, and once at the end.

    hook: `setup` is where networks that are compacted are pruned.
    """

    def __init__(
        self, density: float = 0.2, rounds: int = 5, hook: Literal["on_fit_start", "setup"] = "on_fit_start"
    ) -> None:
        self.density, self.rounds, self.hook = density, rounds, hook
        self.history: list[tuple[dict[str, Tensor], Masks]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.hook == "setup":
            self.prune(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hook == "on_fit_start":
            self.prune(trainer, pl_module)

    def prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def on_round(index: int, density: float, scores: dict[str, Tensor], masks: Masks) -> None:
            self.history.append((dict(scores), masks))
            self.call(trainer, "on_pruning_round", index, self.rounds, density, scores, masks)

        masks = prune(
            pl_module.net,
            synflow,
            density=self.density,
            example_input=EXAMPLE_INPUT,
            rounds=self.rounds,
            on_round=on_round,
        )
        report = preflight(pl_module.net, masks, EXAMPLE_INPUT, density_requested=self.density)
        self.call(trainer, "on_pruned", report, self.history[-1][0], masks)

    def call(self, trainer: Trainer, hook: str, *args: Any) -> None:
        for callback in trainer.callbacks:
            if hasattr(callback, hook):
                getattr(callback, hook)(trainer, trainer.lightning_module, *args)


class Fit:
    """fit(callbacks, max_epochs=..., ckpt_path=..., **trainer): trains on 24 random images, 3 batches an epoch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(
        self,
        callbacks: list[Callback],
        *,
        max_epochs: int = 2,
        ckpt_path: str | Path | None = None,
        logger: Any = False,
        **trainer: Any,
    ) -> Trainer:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(24, 1, 6, 6, generator=generator)
        loader = DataLoader(TensorDataset(images, torch.arange(24) % 3), batch_size=8)
        options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        runner = Trainer(
            max_epochs=max_epochs,
            callbacks=callbacks,
            logger=logger,
            accelerator="cpu",
            devices=1,
            log_every_n_steps=1,
            num_sanity_val_steps=1,
            default_root_dir=self.directory,
            **(options | trainer),
        )
        runner.fit(TinyClassifier(), loader, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return runner


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    return Fit(tmp_path)


@pytest.fixture
def prune_at_start() -> type[PruneAtStart]:
    return PruneAtStart


@pytest.fixture
def record() -> dict[str, Any]:
    """What a run leaves: 3 layers of 1000 prunable weights out of 1100 parameters, 100 kept, one layer dead."""
    return {
        "name": "digits-synflow-d0.1-s0-0123abcd",
        "criterion": "synflow",
        "density": 0.1,
        "density_requested": 0.1,
        "effective_density": 0.09,
        "num_kept": 100,
        "num_prunable": 1000,
        "num_parameters": 1100,
        "layer_densities": {"a.weight": 0.5, "b.weight": 0.0, "c.weight": 0.2},
        "collapsed_layers": ["b.weight"],
        "latency_ms": 1.2567,
        "latency_device": "cpu",
        "latency_threads": 2,
        "weight_bytes": 1_096_416,
        "leaked_weights": 0,
        "val_accuracy": 0.75,
        "test_accuracy": 0.5,
        "train_loss": 0.25,
        "macs_dense": 40_000,
        "macs_masked": 3_000,
        "masks_digest": "0123456789abcdef" * 4,
        "seconds_scoring": 1.25,
        "seconds_training": 60.0,
        "epochs": 3,
        "seed": 0,
        "versions": {"torch": "2.15.0"},
        "zero_score_share": 0.0,
        "shortcut_density": None,
    }


@pytest.fixture
def measured_record(record: dict[str, Any]) -> dict[str, Any]:
    """The same, and what it is on the disk, of a version that measures batches too."""
    return record | {"latency_128_ms": 45.1, "checkpoint_bytes": 2_205_000, "compacted": False, "not_compacted": None}


@pytest.fixture
def compact_record(record: dict[str, Any]) -> dict[str, Any]:
    """`tiny_net` with 9, 36 and 20 weights kept, compacted to 2 and 3 channels of 4 and 6.

    Its kernels of 9 weights stand at 4 x 4 and at 2 x 2 positions, its last layer reads 4 values of each channel:
    36 * 16 + 216 * 4 + 72 = 1512 multiply-adds, 9 * 16 + 36 * 4 + 20 = 308 of which are kept, and
    18 * 16 + 54 * 4 + 36 = 540 in the compact network. Its 13 biases become 8.
    """
    return record | {
        "num_kept": 65,
        "num_prunable": 324,
        "num_parameters": 337,
        "density": 65 / 324,
        "macs_dense": 1_512,
        "macs_masked": 308,
        "compacted": True,
        "not_compacted": None,
        "macs_compact": 540,
        "num_parameters_compact": 116,
        "compact_weights": 108,
        "num_channels": 13,
        "num_channels_compact": 8,
        "latency_ms": 0.5,
        "latency_128_ms": 10.0,
        "latency_dense_ms": 0.75,
        "latency_dense_128_ms": 40.0,
        "weight_bytes": 46_400,
        "weight_bytes_dense": 134_800,
        "checkpoint_bytes": 98_700,
    }


@pytest.fixture
def levels(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a run with a dense level and two pruned ones, which keep 500 and 250 of 1000 weights."""

    def level(index: int, kept: int, **values: Any) -> dict[str, Any]:
        return record | {
            "name": "digits-magnitude-d0.25-s0-0123abcd",
            "criterion": "magnitude",
            "level": index,
            "num_levels": 3,
            "rewind": "weights",
            "rewind_step": 5,
            "control": None,
            "masks_from": None,
            "supermask_test_accuracy": None,
            "density": kept / 1000,
            "density_requested": kept / 1000,
            "effective_density": kept / 1000,
            "num_kept": kept,
            "collapsed_layers": [],
            "masks_digest": f"{index}123456789abcdef" * 4,
            "steps": 1_200,
            **values,
        }

    return [
        level(0, 1000, test_accuracy=0.5, test_accuracy_best=0.5625, macs_masked=40_000, seconds_scoring=0.0),
        level(1, 500, test_accuracy=0.625, test_accuracy_best=None, macs_masked=20_000, val_accuracy=0.8125),
        level(2, 250, test_accuracy=0.25, test_accuracy_best=0.3, macs_masked=8_000, effective_density=0.24),
    ]


@pytest.fixture
def config() -> dict[str, Any]:
    """A resolved config, as a run writes it (shortened)."""
    return {
        "seed_everything": 0,
        "trainer": {"max_epochs": 3, "precision": "32-true", "devices": "auto"},
        "model": {
            "net": {"class_path": "prunelab.models.resnet20", "init_args": {"num_classes": 10, "width": 1}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "weight_decay": 1e-4}},
            "lr_scheduler": None,
        },
        "data": {"class_path": "prunelab.data.digits", "init_args": {"batch_size": 64, "seed": None}},
        "pruning": {
            "criterion": {"class_path": "prunelab.pruning.criteria.SynFlow", "init_args": {"rounds": 100}},
            "density": 0.1,
            "rounds": None,
            "schedule": "exponential",
            "scope": "global",
            "allocation": None,
            "min_layer_density": 0.0,
        },
    }


@pytest.fixture
def make_cell() -> Callable[..., FinishedCell]:
    """make_cell(criterion, density, seed, test_accuracy, ...): a run of two layers of 50 weights each, and its record.

    Other keywords are those of its record, but `axes`: more values of axes.
    """

    def make(
        criterion: str, density: float, seed: int, test_accuracy: float | None, *, axes: Any = None, **record: Any
    ) -> FinishedCell:
        values = {"pruning.criterion": criterion, "pruning.density": density, "seed_everything": seed, **(axes or {})}
        name = "-".join(str(value) for value in values.values())
        written = {
            "criterion": criterion,
            "level": 0,
            "num_levels": 1,
            "density": density,
            "density_requested": density,
            "effective_density": density / 2 if density < 1 else 1.0,
            "layer_densities": {"a.weight": min(1.0, 1.5 * density), "b.weight": 0.5 * density},
            "collapsed_layers": [],
            "test_accuracy": test_accuracy,
            "test_accuracy_best": test_accuracy,
            "val_accuracy": 0.5,
            "macs_masked": 7,
            "masks_digest": "12e4f",
            "versions": {"torch": "2.15.0"},
        }
        return FinishedCell(name, values, [written | record])

    return make
