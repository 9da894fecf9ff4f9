"""A tiny convolutional training on random images, for the callbacks and the module of training/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunelab.pruning.criteria import magnitude
from prunelab.training import Classifier, KeepPruned, PruningAtInit

NUM_SAMPLES, NUM_CLASSES = 48, 3


def tiny_net(dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    """Convolution, batch norm, convolution, linear: 324 prunable weights for images of 1 x 6 x 6."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(24, NUM_CLASSES),
    )


def random_images() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(NUM_SAMPLES, 1, 6, 6, generator=generator), torch.arange(NUM_SAMPLES) % NUM_CLASSES
    )


class TinyData(LightningDataModule):
    """The interface of `ImageDataModule` over random images, in a fixed order; 3 training batches of 16."""

    num_classes = NUM_CLASSES

    def example_input(self) -> Tensor:
        return torch.zeros(1, 1, 6, 6)

    def scoring_batches(self, samples_per_class: int = 10) -> list[tuple[Tensor, Tensor]]:
        count = samples_per_class * NUM_CLASSES
        return [random_images()[:count]]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(random_images(), batch_size=16)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(random_images(), batch_size=16)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)


class Fit:
    """fit(module, callbacks, data=..., ckpt_path=..., **trainer): a Trainer without output; returns it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(
        self,
        module: LightningModule,
        callbacks: list[Callback],
        *,
        data: Any = None,
        ckpt_path: str | Path | None = None,
        **trainer: Any,
    ) -> Trainer:
        options: dict[str, Any] = {
            **{"max_epochs": 1, "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "logger": False},
            **{"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False},
        }
        runner = Trainer(callbacks=callbacks, default_root_dir=self.directory, **(options | trainer))
        data = TinyData() if data is None else data
        source = {"datamodule" if isinstance(data, LightningDataModule) else "train_dataloaders": data}
        runner.fit(module, **source, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return runner


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more threads, and on a busy machine these wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    return Fit(tmp_path)


@pytest.fixture
def make_net() -> Callable[..., nn.Sequential]:
    return tiny_net


@pytest.fixture
def make_module() -> Callable[..., Classifier]:
    def make(net: nn.Module | None = None, optimizer: Any = sgd, **options: Any) -> Classifier:
        return Classifier(tiny_net() if net is None else net, optimizer, **options)

    return make


@pytest.fixture
def make_pruning() -> Callable[..., list[Callback]]:
    """The two callbacks: magnitude at density 0.2 unless said otherwise."""

    def make(criterion: Any = magnitude, density: float | None = 0.2, **options: Any) -> list[Callback]:
        return [PruningAtInit(criterion, density=density, **options), KeepPruned()]

    return make


@pytest.fixture
def images() -> TensorDataset:
    return random_images()


@pytest.fixture
def tiny_data() -> type[TinyData]:
    return TinyData
