"""Ways to train with pruned weights that `masked_step.py` compares, each as a whole training step."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from compact_masks import SETTINGS
from measuring import finish
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelPruning
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize, prune
from torch.utils.data import DataLoader

from prunelab.pruning import Masks
from prunelab.training import KeepPruned

DENSE, AGAIN, KEEP = "dense", "second dense", "prunelab"
PRUNE, PARAMETRIZE, MODEL_PRUNING = "utils.prune", "parametrize", "ModelPruning"
LOOP_WAYS = (DENSE, AGAIN, KEEP, PRUNE, PARAMETRIZE)
FIT_WAYS = (DENSE, AGAIN, KEEP, MODEL_PRUNING, PARAMETRIZE)  # ModelPruning is Lightning's use of utils.prune
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
    "AdamW": partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2),
}


class Times(nn.Module):
    """w * mask, as a parametrization."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def build(network: str, way: str, masks: Masks, compiled: bool) -> nn.Module:
    """The network with what the way changes in it."""
    net = SETTINGS[network].build().train()
    for name in masks:
        path, _, parameter = name.rpartition(".")
        if way == PRUNE:
            prune.custom_from_mask(net.get_submodule(path), parameter, masks[name])
        elif way == PARAMETRIZE:
            parametrize.register_parametrization(net.get_submodule(path), parameter, Times(masks[name]))
    if compiled:
        net.compile()
    return net


def noise(network: str, device: str) -> tuple[Tensor, Tensor]:
    setting = SETTINGS[network]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(setting.batch_size, 3, setting.image_size, setting.image_size, generator=generator)
    labels = torch.randint(setting.num_classes, (setting.batch_size,), generator=generator)
    return images.to(device), labels.to(device)


class PlainLoop:
    """Steps without Lightning: gradients to None, forward, loss, backward, update."""

    def __init__(self, network: str, way: str, optimizer: str, masks: Masks, device: str, compiled: bool) -> None:
        self.device, self.net = device, build(network, way, masks, compiled).to(device)
        self._batch = noise(network, device)
        self._optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self._keeper: Any = KeepPruned(masks.to(device), net="") if way == KEEP else None
        if self._keeper is not None:
            # all that the callback asks of Lightning
            self._trainer = SimpleNamespace(callbacks=[], optimizers=[self._optimizer], world_size=1)
            self._keeper.on_train_start(self._trainer, self.net)

    def seconds(self, steps: int) -> float:
        """Of one step, the mean over `steps`."""
        finish(self.device)
        started = time.perf_counter()
        for _ in range(steps):
            self._pass()
            self._update()
        finish(self.device)
        return (time.perf_counter() - started) / steps

    def seconds_of_update(self, steps: int) -> float:
        """Of what a step does after its backward pass, masking and the optimizer's own step, with caches as that leaves
        them; the mean over `steps`."""
        seconds = 0.0
        for _ in range(steps):
            self._pass()
            finish(self.device)
            started = time.perf_counter()
            self._update()
            finish(self.device)
            seconds += time.perf_counter() - started
        return seconds / steps

    def _pass(self) -> None:
        self._optimizer.zero_grad()
        cross_entropy(self.net(self._batch[0]), self._batch[1]).backward()

    def _update(self) -> None:
        if self._keeper is not None:
            self._keeper.on_before_optimizer_step(self._trainer, self.net, self._optimizer)
        self._optimizer.step()  # after which it calls KeepPruned again


class InFit:
    """The same steps inside `Trainer.fit`, an epoch a turn; the optimizer and its slots stay from fit to fit."""

    def __init__(self, network: str, way: str, optimizer: str, masks: Masks, device: str, compiled: bool) -> None:
        self.device, self.net = device, build(network, way, masks, compiled)
        self._batch = noise(network, device)
        self._module = _Module(self.net, OPTIMIZERS[optimizer])
        self._watch = _StopWatch(device)
        callbacks: list[Callback] = [self._watch]
        if way == KEEP:
            callbacks.append(KeepPruned(masks.to(device)))
        elif way == MODEL_PRUNING:
            callbacks.append(self._model_pruning(masks))
        for logger in ("pytorch_lightning", "lightning.pytorch"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        self._trainer = Trainer(
            accelerator=device, devices=1, max_epochs=0, callbacks=callbacks, enable_checkpointing=False, **quiet
        )

    def seconds(self, steps: int) -> float:
        """Of one step: from the start of the epoch's first to the end of its last, over their number."""
        self._trainer.fit_loop.max_epochs = (self._trainer.fit_loop.max_epochs or 0) + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a loader without workers: its batches are ready
            self._trainer.fit(self._module, DataLoader([self._batch] * steps, batch_size=None))
        return self._watch.seconds / steps

    def _model_pruning(self, masks: Masks) -> Callback:
        """Prunes once, after the first epoch, as many weights of the same layers."""
        layers = [(self.net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in masks]
        return ModelPruning(
            "random_unstructured",
            layers,
            amount=1 - masks.density,
            apply_pruning=lambda epoch: epoch == 0,
            use_lottery_ticket_hypothesis=False,
            make_pruning_permanent=False,
        )


class _Module(LightningModule):
    def __init__(self, net: nn.Module, make_optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.net = net
        self._make_optimizer = make_optimizer
        self._optimizer: torch.optim.Optimizer | None = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            self._optimizer = self._make_optimizer(self.net.parameters())
        return self._optimizer


class _StopWatch(Callback):
    def __init__(self, device: str) -> None:
        self.device, self.seconds, self._started = device, 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            finish(self.device)
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            finish(self.device)
            self.seconds = time.perf_counter() - self._started
