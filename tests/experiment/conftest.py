"""Whole runs on random pictures: 96 to train on, 24 to validate, 33 to test; 6 steps an epoch, a second in all."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback

from prunelab.data import ImageArrays, ImageDataModule
from prunelab.experiment.run import run
from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.training import Classifier, PruningAtInit

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "max_time": None,
        "callbacks": None,
        "logger": None,
    },
    "model": {
        "net": {
            "class_path": "prunelab.models.mlp",
            "init_args": {"num_classes": 3, "in_channels": 1, "image_size": 6, "depth": 2, "width": 8},
        },
        "optimizer": {
            "class_path": "torch.optim.SGD",
            "init_args": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
        },
        "lr_scheduler": {
            "class_path": "torch.optim.lr_scheduler.MultiStepLR",
            "init_args": {"milestones": [2], "gamma": 0.1},
        },
    },
    "data": {"class_path": "random_pictures", "init_args": {"batch_size": 16, "val_size": 24}},
    "pruning": {
        "criterion": {"class_path": "prunelab.pruning.criteria.Snip", "init_args": {"rounds": 1}},
        "density": 0.1,
        "sparsity": None,
        "compression_ratio": None,
        "on_collapse": "warn",
    },
}
NUM_PRUNABLE = 36 * 8 + 8 * 3


def random_pictures(batch_size: int = 16, val_size: int = 24) -> ImageDataModule:
    def read() -> ImageArrays:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(153) % 3
        images = torch.randint(200, (153, 1, 6, 6), generator=generator) + 18 * labels[:, None, None, None]
        pictures = images.to(torch.uint8)
        return ImageArrays(pictures[:120], labels[:120], pictures[120:], labels[120:], ("a", "b", "c"))

    return ImageDataModule(read, batch_size, val_size, augment="crop_flip", padding=1)


def built(spec: dict[str, Any] | None) -> Any:
    """A callable from {class_path, init_args}, None from None."""
    return spec and partial(pkgutil.resolve_name(spec["class_path"]), **spec["init_args"])


class Experiment:
    """experiment(**{"trainer.max_epochs": 5}) runs CONFIG with those values changed; returns the level's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.num_built = 0
        self.callbacks: list[Callback] = []  # beside those of the config, and no part of it

    def config(self, **changes: Any) -> dict[str, Any]:
        config = deepcopy(CONFIG)
        for path, value in changes.items():
            *groups, key = path.split(".")
            section = config
            for group in groups:
                section = section[group]
            section[key] = value
        return config

    def level(self, **changes: Any) -> LevelDir:
        return RunDir.of(str(self.directory), "tiny", self.config(**changes)).level(0)

    def __call__(self, ckpt_path: str | None = None, **changes: Any) -> LevelDir:
        config = self.config(**changes)

        def instantiate() -> Any:
            self.num_built += 1
            spec = deepcopy(config)
            model, pruning = spec["model"], spec["pruning"]
            trainer = spec["trainer"] | {"callbacks": [*self.callbacks, *(spec["trainer"]["callbacks"] or [])]}
            module = Classifier(built(model["net"])(), built(model["optimizer"]), built(model["lr_scheduler"]))
            pruning["criterion"] = built(pruning["criterion"])()
            return trainer, module, random_pictures(**spec["data"]["init_args"]), PruningAtInit(**pruning)

        assert run("tiny", config, instantiate, str(self.directory), ckpt_path) == 0
        return self.level(**changes)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more threads, and on a busy machine these wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(tmp_path / "runs")


@pytest.fixture
def data() -> ImageDataModule:
    """What a run with seed 0 sees."""
    module = random_pictures()
    module.seed = 0
    module.setup("fit")
    return module


@pytest.fixture
def num_prunable() -> int:
    return NUM_PRUNABLE
