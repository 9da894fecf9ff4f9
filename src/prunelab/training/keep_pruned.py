"""Hold the zeros: after every optimizer step a pruned weight is exactly 0, and so are its gradient and its slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from prunelab.pruning import Masks, PruningError
from prunelab.pruning.diagnostics import count_leaked
from prunelab.pruning.masks import placed_like
from prunelab.training.network import find_network
from prunelab.training.ranks import check_alike, load_from_first, of_ranks, weights_digest
from prunelab.training.sharded import own_part, reshard
from prunelab.training.slots import lay_out_slots
from prunelab.training.square_roots import lift_zeros, lower_zeros

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class KeepPruned(Callback):
    """Keep pruned weights at exactly 0, or at the values they are frozen at, during training, for any optimizer.

    Gradients are masked before clipping, so that pruned weights do not enter the norm; optimizer slots (momentum, Adam
    moments) are zeroed once, after they were made or restored; weights are masked again right after each step, which
    catches what moves a weight without a gradient. On a CPU the optimizer is spared square roots of 0 (`square_roots`).
    Masking gives +0.0 whatever was there, NaN too. Slots that a checkpoint brought in another memory format than the
    weights' are laid out as these. Copies that Lightning's weight averaging made before pruning are masked once;
    averages of equal values stay what they are. Weights stay plain parameters: nothing is renamed or replaced.

    masks: None takes those of the PruningAtInit (or any callback with `masks`, or `held_masks` where the network was
    compacted) in the trainer, and with them its `frozen` values: name -> tensor of what pruned weights hold, None for 0
    everywhere. net: attribute of the LightningModule that holds the network; None means that callback's.
    Of several processes each compares masks and weights to rank 0's, before training and at its end.
    Raises: PruningError if there are no masks; RuntimeError at the end of an epoch if a pruned weight does not hold
    what it should; RanksDiffer. If it does on one rank, it does on all.
    """

    def __init__(self, masks: Masks | None = None, net: str | None = None) -> None:
        self.masks = masks
        self.net = net
        self._weights: list[Tensor] = []
        self._pruned: list[Tensor] = []  # of the weights those on a CPU whose mask prunes
        self._factors: list[Tensor] = []
        self._frozen: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reshard(pl_module)
        masks, frozen, path = self._source(trainer)
        averages = weight_averages(trainer)
        for average in averages:  # copied in `setup`, when ranks that were seeded apart still had weights of their own
            load_from_first(trainer, average)
        for module in (pl_module, *(average.module for average in averages)):
            masks.apply_to(find_network(module, path), frozen)
        parameters = dict(find_network(pl_module, path).named_parameters())
        self._weights = [parameters[name] for name in masks]
        placed = [placed_like(masks[name], parameters[name]) for name in masks]
        pairs = zip(self._weights, placed, strict=True)
        self._pruned = [w for w, mask in pairs if w.device.type == "cpu" and not own_part(mask).all()]
        # of the weights' own width and memory layout: one fused multiplication for all layers
        self._factors = [
            torch.empty_like(_bits(weight)).copy_(own_part(mask))
            for weight, mask in zip(self._weights, placed, strict=True)
        ]
        if frozen is not None:
            pairs = zip(self._weights, placed, strict=True)
            self._frozen = [weight.detach().masked_fill(mask, 0) for weight, mask in pairs]
            _average_exactly(trainer)
        for optimizer in trainer.optimizers:
            lay_out_slots(optimizer)
            self._zero_slots(optimizer)
            self._handles.append(optimizer.register_step_post_hook(self._mask_weights))
        self._check_ranks(trainer, pl_module, "before training")

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        pairs = [(weight.grad, factor) for weight, factor in zip(self._weights, self._factors, strict=True)]
        gradients = [(_bits(gradient), factor) for gradient, factor in pairs if gradient is not None]
        if gradients:
            torch._foreach_mul_(*map(list, zip(*gradients, strict=True)))
        lift_zeros(optimizer, self._pruned)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        masks, frozen, path = self._source(trainer)
        leaked = count_leaked(find_network(pl_module, path), masks, frozen)
        if leaked and not all(bool(torch.isfinite(weight).all()) for weight in self._weights):
            leaked = 0
        if leaked := max(of_ranks(trainer, leaked)):  # a rank that stops alone would leave the others waiting
            held = "0" if frozen is None else "what they were frozen at"
            raise RuntimeError(f"{leaked} pruned weights are not {held}: something outside the optimizer wrote to them")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._let_go()
        self._check_ranks(trainer, pl_module, "after training")

    @torch.no_grad()
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for optimizer in trainer.optimizers:  # one may have been about to step
            lower_zeros(optimizer, self._pruned)
        self._let_go()

    def _check_ranks(self, trainer: Trainer, pl_module: LightningModule, when: str) -> None:
        masks, _, path = self._source(trainer)
        weights = weights_digest(trainer, find_network(pl_module, path))
        check_alike(trainer, when, {"masks": masks.digest(), "weights": weights})

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._weights, self._pruned, self._factors, self._frozen, self._handles = [], [], [], [], []

    def _source(self, trainer: Trainer) -> tuple[Masks, Mapping[str, Tensor] | None, str]:
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        pruning: Any = next((c for c in others if isinstance(getattr(c, "masks", None), Masks)), None)
        masks, frozen = self.masks, None
        if masks is None and pruning is not None:
            masks, frozen = getattr(pruning, "held_masks", pruning.masks), getattr(pruning, "frozen", None)
        if masks is None:
            raise PruningError("KeepPruned has no masks: give it some, or put PruningAtInit among the callbacks")
        path = self.net if self.net is not None else getattr(pruning, "net", "net")
        return masks, frozen, path

    def _zero_slots(self, optimizer: Optimizer) -> None:
        for weight, factor in zip(self._weights, self._factors, strict=True):
            for slot in optimizer.state.get(weight, {}).values():
                if isinstance(slot, Tensor) and slot.shape == weight.shape:
                    _bits(slot).mul_(factor)

    @torch.no_grad()
    def _mask_weights(self, optimizer: Optimizer, *_: Any) -> None:
        lower_zeros(optimizer, self._pruned)
        if self._weights:
            torch._foreach_mul_([_bits(weight) for weight in self._weights], self._factors)
        if self._frozen:
            torch._foreach_add_(self._weights, self._frozen)


def _bits(tensor: Tensor) -> Tensor:
    """What this process holds of the tensor, read as integers: 0 times any of them is +0.0, and 1 times it the number
    itself. As numbers, 0 * NaN would be NaN and 0 * -1 would be -0.0.
    """
    part = own_part(tensor)
    return part.view(_INTEGERS[part.element_size()])


def weight_averages(trainer: Trainer) -> list[AveragedModel]:
    """What weight averaging made in `setup`, of weights that were not pruned yet."""
    averaging = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
    # not public, no public way exists
    return [c._average_model for c in averaging if c._average_model is not None]


def _average_exactly(trainer: Trainer) -> None:
    """Make averages of equal values that value: decay * w + (1 - decay) * w is rounded to something else."""
    for average in weight_averages(trainer):
        if average.avg_fn is not None:
            average.avg_fn = _exact(average.avg_fn)


def _exact(average: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def averaged(mean: Tensor, value: Tensor, num_averaged: Tensor | int) -> Tensor:
        return torch.where(mean == value, mean, average(mean, value, num_averaged))

    return averaged
