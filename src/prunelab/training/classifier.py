"""The LightningModule that hosts a network: loss, metrics, optimizer, schedule. It does not know that masks exist."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prunelab.training.compacting import shrink_as_in

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """Cross-entropy training of `net` on (images, labels); accuracies are fractions, averaged over samples.

    optimizer, lr_scheduler: callables that take the parameters, and the optimizer. lr_interval: whether the schedule
    counts epochs or optimizer steps. channels_last: memory format of weights and images (faster convolutions on most
    machines, same numbers up to rounding). compile: compile the network in place when training starts, after pruning,
    so that parameter names stay.
    Logs once per epoch: train_loss, train_accuracy, val_loss, val_accuracy, test_loss, test_accuracy, and lr, the
    learning rate of the epoch's first step.

    On several devices the gradient is the mean over the samples of all of them, also where they have unequally many
    (a loader that has `loss_factor` says so). Batch norm in training normalises by each device's own share of the
    batch, unless the Trainer's `sync_batchnorm`, for GPUs, joins them; the running statistics are those of the first
    device, which DDP hands to the others before each step, and before validation and test.
    """

    takes_empty_batches = True  # says to our data modules: the last batch may have fewer samples than devices

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last) if channels_last else net
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._lr_interval = lr_interval
        self._label_smoothing = label_smoothing
        self._channels_last = channels_last
        self._compile = compile

    def drop_schedule(self) -> None:
        """Keep the learning rate where it is from now on."""
        self._lr_scheduler = None

    def forward(self, images: Tensor) -> Tensor:
        if self._channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.net(images)

    def on_fit_start(self) -> None:
        if self._compile:  # callbacks' on_fit_start, and with it pruning, came before
            self.net.compile()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        shrink_as_in(self, checkpoint)  # the network of the checkpoint may be a compact one

    def on_train_epoch_start(self) -> None:
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], sync_dist=True, prog_bar=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._step("train", batch, self._label_smoothing)
        loader: Any = None if self._trainer is None else self._trainer.train_dataloader
        return loss * loader.loss_factor(batch_idx) if hasattr(loader, "loss_factor") else loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step("test", batch)

    def _step(self, stage: str, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        images, labels = batch
        logits = self(images)
        if len(labels) == 0:  # of the last batch other ranks got all; with this one they average gradients, here 0
            loss, accuracy = logits.sum(), torch.zeros((), device=logits.device)
        else:
            loss = cross_entropy(logits, labels, label_smoothing=label_smoothing)
            accuracy = (logits.argmax(-1) == labels).float().mean()
        values = {f"{stage}_loss": loss.detach(), f"{stage}_accuracy": accuracy}
        # a float: Lightning averages the number of samples over the devices, and a whole number would be rounded down
        num_samples: Any = float(len(labels))
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=num_samples, sync_dist=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.parameters())
        if self._lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": self._lr_scheduler(optimizer), "interval": self._lr_interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}
