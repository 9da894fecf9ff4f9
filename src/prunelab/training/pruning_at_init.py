"""When to prune: at on_fit_start, with the weights in place and before the first step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelab.compaction import ChannelIndex
from prunelab.pruning import Criterion, Masks, PruningError, prunable_names
from prunelab.pruning.allocation import Allocation
from prunelab.pruning.density import density_from
from prunelab.pruning.preflight import Preflight
from prunelab.pruning.schedules import Schedule
from prunelab.pruning.scoring import Batch, Loss
from prunelab.pruning.selection import Scope
from prunelab.training import compacting
from prunelab.training.finding import Found, batches_for, find_masks, judge, load_masks, one_thread, take_masks
from prunelab.training.keep_pruned import KeepPruned
from prunelab.training.network import find_network, like_weights, load_weights
from prunelab.training.ranks import check_alike
from prunelab.training.scoring_data import example_input
from prunelab.training.sharded import check_sharded, check_strategy, reshard, restores_late, whole_copy
from prunelab.training.ticket import Ticket, weights_in_place


class PruningAtInit(Callback):
    """Score the network, select, check, set the zeros and report, when `fit` starts; `KeepPruned` then holds the zeros.

    A criterion and exactly one of density, sparsity, compression_ratio; or instead `masks_from`, a file of masks that
    are taken as they are (`pruning.transfer`). rounds: None means the criterion's own. include, exclude: shell pattern
    or patterns of parameter names to add and to leave out (`prunable_names`). on_collapse: what to do when a layer
    keeps no weight; "train" trains even a network without any path from input to output, which is an error otherwise,
    for pictures of collapse.
    net: dotted attribute of the LightningModule that holds the network, "" for the module itself.
    loss: (outputs, labels) -> mean loss, for criteria that need it; None means cross-entropy.
    batches: (inputs, labels) pairs to score with; None means the data module's `scoring_batches()`, un-augmented, or
    for loaders of others the first samples of each class. samples_per_class: how many; None means 10.
    weights_from: file with weights to start from, a state dict or a Lightning checkpoint. seed: of the criterion's
    draws; None means the run's (`seed_everything`).
    compact: remove dead channels before training, so that the network is really smaller and faster, with the same
    function and gradients (`prunelab.compaction`). Scoring then happens in `setup`, before a checkpoint is restored,
    DDP wraps and the optimizer is made; a network that cannot be traced trains masked, with a warning, and the reason
    in `not_compacted`. compact_multiple: of which widths are made, with channels that stay although they are dead:
    processors compute 8 at a time, and 1 gives the smallest network. To resume with a Trainer of your own, call
    `resume_from(checkpoint)` before `fit`, and `compacting.shrink_as_in` in your module's on_load_checkpoint.

    follows_dead_weights: an attribute, for levels that will rank this one's weights (`DeadWeights`).
    `masks`, scores and report are always those of the full network; `held_masks` those of the network that trains.
    All ranks score the same batches on the bare network, with one thread each, and compare their masks.
    FSDP2 (ModelParallelStrategy, and a module whose `configure_model` calls `fully_shard` on all of the network): each
    process scores a whole copy of the network, as large as it is unsharded, and trains its part; at on_train_start, as
    a checkpoint is restored only after on_fit_start there. See docs/sharding.md.
    Masks and report travel in the checkpoint as this callback's state: a resumed run keeps them and scores nothing.
    Other callbacks may have `on_pruning_round(trainer, pl_module, index, num_rounds, density, scores, masks)` and
    `on_pruned(trainer, pl_module, preflight, scores, masks)`: they are called after each round, and at the end.

    Raises: PruningError for requests that cannot be honoured, a network without any input-output path included;
    RanksDiffer on all ranks if their masks differ.
    """

    def __init__(
        self,
        criterion: Criterion | None = None,
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
        on_collapse: Literal["warn", "fail", "train"] = "warn",
        net: str = "net",
        loss: Loss | None = None,
        batches: Iterable[Batch] | None = None,
        weights_from: str | None = None,
        masks_from: str | None = None,
        seed: int | None = None,
        compact: bool = False,
        compact_multiple: int = 8,
    ) -> None:
        if (criterion is None) == (masks_from is None):
            raise PruningError("PruningAtInit needs a criterion or masks_from, and not both")
        spellings = (density, sparsity, compression_ratio)
        has_density = any(spelling is not None for spelling in spellings)
        if masks_from is not None and has_density:
            raise PruningError("masks_from brings its density: leave density, sparsity and compression_ratio out")
        if compact_multiple < 1:
            raise PruningError(f"compact_multiple {compact_multiple}: it is at least 1")
        self.criterion = criterion
        self.masks_from = masks_from
        self.density = density_from(*spellings) if has_density else None
        self.rounds = rounds
        self.schedule = schedule
        self.scope = scope
        self.allocation: Allocation | Mapping[str, float] | None = allocation
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
        self.compact = compact
        self.compact_multiple = compact_multiple
        self.masks: Masks | None = None
        self.preflight: Preflight | None = None
        self.seconds_scoring = 0.0
        self.frozen: dict[str, Tensor] | None = None
        self.ticket = Ticket()
        self.follows_dead_weights = False
        self.given: Masks | None = None
        self.given_digest: str | None = None
        self._compaction = compacting.Compaction()
        self._is_new = False
        if samples_per_class is not None and not (criterion is not None and criterion.needs_batches):
            raise PruningError(f"samples_per_class: {type(criterion or masks_from).__name__} scores without data")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        keeping = [index for index, callback in enumerate(callbacks) if isinstance(callback, KeepPruned)]
        if not keeping:
            raise PruningError(
                "PruningAtInit needs KeepPruned() among the trainer's callbacks, or the zeros would not last"
            )
        if restores_late(trainer) and keeping[0] < callbacks.index(self):
            raise PruningError(f"{type(trainer.strategy).__name__}: PruningAtInit goes before KeepPruned")
        if self.criterion is not None:
            check_density_given(self.density)
        check_strategy(trainer, pl_module, compact=self.compact)
        # what follows depends on it, collectives too: a rank that sees other files would wait for ever
        start = {"checkpoint": str(trainer.ckpt_path is not None), "masks": self.masks.digest() if self.masks else ""}
        check_alike(trainer, "setup", start)
        if not restores_late(trainer):  # with FSDP2 it may be made later, in configure_model
            find_network(pl_module, self.net)
        if self.weights_from is not None and self.masks is None:
            self._load_weights(trainer, find_network(pl_module, self.net), self.weights_from)
        if self.compact:
            self._make_compact(trainer, pl_module, find_network(pl_module, self.net))

    def _make_compact(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> None:
        compacting.check_compactible(trainer, net, self.ticket, has_masks=self.masks is not None)
        if self.masks is None:
            # before the network has found its place in the Trainer: it goes where it will train by itself
            compacting.start_together(trainer, net, self.ticket.start)
            masks = self._prune(trainer, pl_module, net)
            self._compaction.find(
                trainer,
                net,
                masks,
                self._example(trainer, pl_module, net),
                multiple=self.compact_multiple,
                follows_dead_weights=self.follows_dead_weights,
            )
            self._is_new = True
        self._compaction.shrink(net)

    @property
    def index(self) -> ChannelIndex | None:
        """The map from the compact network to the full one; None if the full one trains."""
        return self._compaction.index

    @property
    def not_compacted(self) -> str | None:
        """Why the network trains masked although it was to be compact."""
        return self._compaction.not_compacted

    @property
    def held_masks(self) -> Masks | None:
        """The masks of the network as it trains: smaller than `masks` if it is compact."""
        if self.masks is None or self.index is None:
            return self.masks
        return Masks(self.index.take(dict(self.masks)))

    def _load_weights(self, trainer: Trainer, net: nn.Module, path: str) -> None:
        new_head = load_weights(net, path, self.net, new_head=self.masks_from is not None)
        if new_head is not None and trainer.is_global_zero:
            print(f"weights_from: {new_head or 'the layer'} has another number of outputs, it starts as drawn")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not restores_late(trainer):
            self._start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if restores_late(trainer):  # now a resumed run has its masks
            reshard(pl_module)
            check_sharded(find_network(pl_module, self.net))
            self._start(trainer, pl_module)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        net = find_network(pl_module, self.net)
        if self.masks is None or (held := self.held_masks) is None:
            self._prune(trainer, pl_module, net)
            return
        # found in setup, restored from the checkpoint, or a second fit with this callback
        held.apply_to(net, self.frozen)
        self._compaction.join(trainer.optimizers, net)
        if trainer.is_global_zero and not self._is_new:
            print(f"masks already there, density {self.masks.density:.6g}: scoring skipped", flush=True)
        self._is_new = False

    def _prune(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> Masks:
        started = time.monotonic()
        with isolate_rng():  # the training's own random draws must not depend on how it was pruned
            # rank 0's seed: ranks that were seeded apart must still find one mask
            seed = trainer.strategy.broadcast(torch.initial_seed() if self.seed is None else self.seed)
            torch.manual_seed(seed)  # of the loader that scoring may read
            whole = whole_copy(net) if restores_late(trainer) else net
            with weights_in_place(whole, self.ticket.weights), one_thread():
                found = self._find(trainer, pl_module, whole, torch.Generator().manual_seed(seed))
            check_alike(trainer, "scoring", {"masks": found.masks.digest()})
            self.masks, self.preflight = found.masks, found.report
            self.frozen = self.ticket.set_weights(whole, self.masks, torch.Generator().manual_seed(seed))
            if whole is not net:
                self.masks.apply_to(net, self.frozen)
        self.ticket = Ticket()  # whose weights would stay in memory while the level trains
        self.seconds_scoring = time.monotonic() - started
        if trainer.is_global_zero:
            print(self.preflight, flush=True)
        judge(self.preflight, fail=self.on_collapse == "fail")
        _notify(trainer, "on_pruned", pl_module, self.preflight, found.scores, self.masks)
        return self.masks

    def _find(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module, generator: torch.Generator) -> Found:
        names = prunable_names(net, self.include, self.exclude)
        example = self._example(trainer, pl_module, net)
        needs_path = self.on_collapse != "train"
        if self.given is None and self.masks_from is not None:
            self.given = load_masks(self.masks_from)
        if self.given is not None:
            self.given_digest = self.given.digest()
            return take_masks(net, self.given, names, example, needs_path=needs_path)
        density = check_density_given(self.density)
        if self.criterion is None:
            raise RuntimeError("there is neither a criterion nor masks")
        given_batches, samples = self._given_batches(), self.samples_per_class
        return find_masks(
            net,
            self.criterion,
            density=density,
            example_input=example,
            masks=self.ticket.masks.to(example.device) if self.ticket.masks else Masks.dense(net, names),
            batches=batches_for(self.criterion, trainer, given_batches, samples, net, example),
            rounds=self.rounds,
            loss=self.loss,
            on_round=partial(_notify, trainer, "on_pruning_round", pl_module),
            needs_path=needs_path,
            schedule=self.schedule,
            scope=self.scope,
            allocation=self.allocation,
            min_layer_density=self.min_layer_density,
            initial=self.ticket.initial,
            generator=generator,
        )

    def _example(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> Tensor:
        return like_weights(example_input(trainer, pl_module, self._given_batches()), net)

    def _given_batches(self) -> Sequence[Batch] | None:
        if self.batches is not None and not isinstance(self.batches, Sequence):
            self.batches = list(self.batches)  # it may be readable only once
        return self.batches

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._compaction.save(checkpoint, pl_module, self.net, trainer.optimizers)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if (index := compacting.index_in(checkpoint)) is not None:
            self._compaction.index = index

    def resume_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Take masks and channels from a checkpoint (as read from its file) that `fit` will be given: with `compact`
        the network has to have its size before Lightning reads it. Nothing happens if it holds no masks.
        """
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is not None and state["masks"] is not None:
            self.load_state_dict(state)
            self._compaction.resume_from(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that checkpoints load with torch's default `weights_only=True`."""
        return {
            "masks": None if self.masks is None else dict(self.masks),
            "frozen": self.frozen,
            "given_digest": self.given_digest,
            "preflight": None if self.preflight is None else asdict(self.preflight),
            "seconds_scoring": self.seconds_scoring,
            "not_compacted": self.not_compacted,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.masks = None if state_dict["masks"] is None else Masks(state_dict["masks"])
        self.frozen = state_dict["frozen"]
        self.given_digest = state_dict["given_digest"]
        self.preflight = None if state_dict["preflight"] is None else Preflight(**state_dict["preflight"])
        self.seconds_scoring = state_dict["seconds_scoring"]
        self._compaction.not_compacted = state_dict.get("not_compacted")  # checkpoints from before compaction lack it


def check_density_given(density: float | None) -> float:
    """Raises: PruningError if there is none."""
    if density is None:
        raise PruningError("give exactly one of density, sparsity and compression_ratio, got none of them")
    return density


def _notify(trainer: Trainer, hook: str, pl_module: LightningModule, *arguments: Any) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, pl_module, *arguments)
