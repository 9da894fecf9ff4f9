"""When to prune: at on_fit_start, with the weights in place and before the first step."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelab.pruning import Criterion, Masks, PruningError, Scoring, prunable_names, prune
from prunelab.pruning.allocation import Allocation
from prunelab.pruning.density import density_from
from prunelab.pruning.gradients import scoring_loss
from prunelab.pruning.preflight import Preflight, preflight
from prunelab.pruning.schedules import Schedule
from prunelab.pruning.scoring import Batch, Loss
from prunelab.pruning.selection import Scope
from prunelab.training.keep_pruned import KeepPruned
from prunelab.training.network import find_network, load_weights
from prunelab.training.scoring_data import example_input, scoring_batches

SAMPLES_PER_CLASS = 10


class PruningAtInit(Callback):
    """Score the network, select, check, set the zeros and report, when `fit` starts; `KeepPruned` then holds the zeros.

    Exactly one of density, sparsity, compression_ratio. rounds: None means the criterion's own. include, exclude:
    shell pattern or patterns of parameter names to add and to leave out (`prunable_names`). on_collapse: what to do
    when a layer keeps no weight.
    net: dotted attribute of the LightningModule that holds the network, "" for the module itself.
    loss: (outputs, labels) -> mean loss, for criteria that need it; None means cross-entropy.
    batches: (inputs, labels) pairs to score with; None means the data module's `scoring_batches()`, un-augmented, or
    for loaders of others the first samples of each class. samples_per_class: how many; None means 10.
    weights_from: file with weights to start from, a state dict or a Lightning checkpoint. seed: of the criterion's
    draws; None means the run's (`seed_everything`).

    All ranks score the same batches on the bare network; rank 0's mask is taken and every rank compares it to its own.
    Masks and report travel in the checkpoint as this callback's state: a resumed run keeps them and scores nothing.
    Other callbacks may have `on_pruning_round(trainer, pl_module, index, num_rounds, density, scores, masks)` and
    `on_pruned(trainer, pl_module, preflight, scores, masks)`: they are called after each round, and at the end.

    Raises: PruningError for requests that cannot be honoured, a network without any input-output path included.
    """

    def __init__(
        self,
        criterion: Criterion,
        density: float | None = None,
        sparsity: float | None = None,
        compression_ratio: float | None = None,
        rounds: int | None = None,
        schedule: Schedule = "exponential",
        scope: Scope = "global",
        allocation: Allocation | None = None,
        min_layer_density: float = 0.0,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        samples_per_class: int | None = None,
        on_collapse: Literal["warn", "fail"] = "warn",
        net: str = "net",
        loss: Loss | None = None,
        batches: Iterable[Batch] | None = None,
        weights_from: str | None = None,
        seed: int | None = None,
    ) -> None:
        self.criterion = criterion
        self.density = density_from(density, sparsity, compression_ratio)
        self.rounds = rounds
        self.schedule = schedule
        self.scope = scope
        self.allocation = allocation
        self.min_layer_density = min_layer_density
        self.include = [include] if isinstance(include, str) else list(include)
        self.exclude = [exclude] if isinstance(exclude, str) else list(exclude)
        self.samples_per_class = samples_per_class
        self.on_collapse = on_collapse
        self.net = net
        self.loss = loss or cross_entropy
        self.batches = batches
        self.weights_from = weights_from
        self.seed = seed
        self.masks: Masks | None = None
        self.preflight: Preflight | None = None
        self.seconds_scoring = 0.0
        if samples_per_class is not None and not criterion.needs_batches:
            raise PruningError(f"samples_per_class: {type(criterion).__name__} scores without data")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not any(isinstance(callback, KeepPruned) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise PruningError(
                "PruningAtInit needs KeepPruned() among the trainer's callbacks, or the zeros would not last"
            )
        if self.weights_from is not None and self.masks is None:
            load_weights(find_network(pl_module, self.net), self.weights_from, self.net)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        net = find_network(pl_module, self.net)
        if self.masks is not None:  # restored from the checkpoint, or a second fit with this callback
            self.masks.apply_to(net)
            if trainer.is_global_zero:
                print(f"masks already there, density {self.masks.density:.6g}: scoring skipped", flush=True)
            return
        started = time.monotonic()
        with isolate_rng():  # the training's own random draws must not depend on how it was pruned
            masks, report, scores = self._prune(trainer, pl_module, net)
        self.masks, self.preflight = _agreed(trainer, masks), report
        self.masks.apply_to(net)
        self.seconds_scoring = time.monotonic() - started
        if trainer.is_global_zero:
            print(report, flush=True)
        self._judge(report)
        _notify(trainer, "on_pruned", pl_module, report, scores or {}, self.masks)

    def _prune(
        self, trainer: Trainer, pl_module: LightningModule, net: nn.Module
    ) -> tuple[Masks, Preflight, dict[str, Tensor] | None]:
        # rank 0's seed: ranks that were seeded apart must still find one mask
        seed = trainer.strategy.broadcast(torch.initial_seed() if self.seed is None else self.seed)
        torch.manual_seed(seed)  # of the loader that scoring may read
        dense = Masks.dense(net, prunable_names(net, self.include, self.exclude))
        given = None if self.batches is None else list(self.batches)
        example = _like_weights(example_input(trainer, pl_module, given), net)
        batches = self._batches(trainer, net, example, given)
        num_rounds = self.criterion.rounds if self.rounds is None else self.rounds
        last: dict[str, Any] = {"scores": None, "scored": dense, "kept": dense}

        def on_round(index: int, density: float, scores: dict[str, Tensor], masks: Masks) -> None:
            last.update(scores=scores, scored=dense if self.criterion.revives else last["kept"], kept=masks)
            _notify(trainer, "on_pruning_round", pl_module, index, num_rounds, density, scores, masks)

        masks = prune(
            net,
            self.criterion,
            density=self.density,
            example_input=example,
            masks=dense,
            batches=batches,
            rounds=self.rounds,
            schedule=self.schedule,
            scope=self.scope,
            allocation=self.allocation,
            min_layer_density=self.min_layer_density,
            on_round=on_round,
            loss=self.loss,
            generator=torch.Generator().manual_seed(seed),
        )
        loss = None
        if batches:
            scoring = Scoring(net, dense, example, batches=batches, loss=self.loss)
            loss = scoring_loss(scoring, batch_norm=getattr(self.criterion, "batch_norm", "running"))
        report = preflight(
            net,
            masks,
            example,
            density_requested=self.density,
            scores=last["scores"],
            scored_masks=last["scored"],
            scoring_loss=loss,
        )
        return masks, report, last["scores"]

    def _batches(self, trainer: Trainer, net: nn.Module, example: Tensor, given: Sequence[Batch] | None) -> list[Batch]:
        if not self.criterion.needs_batches:
            return []
        samples = SAMPLES_PER_CLASS if self.samples_per_class is None else self.samples_per_class
        found = scoring_batches(trainer, given, samples, net, example)
        return [tuple(_like_weights(part, net) for part in batch[:2]) for batch in found]

    def _judge(self, report: Preflight) -> None:
        if not report.collapsed_layers:
            return
        message = f"layer collapse: {', '.join(report.collapsed_layers)} kept no weight"
        if self.on_collapse == "fail":
            raise PruningError(message)
        warnings.warn(message, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that checkpoints load with torch's default `weights_only=True`."""
        return {
            "masks": None if self.masks is None else dict(self.masks),
            "preflight": None if self.preflight is None else asdict(self.preflight),
            "seconds_scoring": self.seconds_scoring,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.masks = None if state_dict["masks"] is None else Masks(state_dict["masks"])
        self.preflight = None if state_dict["preflight"] is None else Preflight(**state_dict["preflight"])
        self.seconds_scoring = state_dict["seconds_scoring"]


def _agreed(trainer: Trainer, masks: Masks) -> Masks:
    """Rank 0's masks, on every rank. Raises: RuntimeError on a rank whose own differ."""
    if trainer.world_size == 1:
        return masks
    first = Masks(trainer.strategy.broadcast({name: mask.cpu() for name, mask in masks.items()}))
    if first.digest() != masks.digest():
        raise RuntimeError(f"rank {trainer.global_rank} found other masks than rank 0: {masks} and {first}")
    return masks


def _notify(trainer: Trainer, hook: str, pl_module: LightningModule, *arguments: Any) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, pl_module, *arguments)


def _like_weights(tensor: Tensor, net: nn.Module) -> Tensor:
    """On the device of the network's weights, and in their dtype unless it holds integers."""
    weight = next(net.parameters())
    return tensor.to(weight.device, weight.dtype if tensor.is_floating_point() else tensor.dtype)
