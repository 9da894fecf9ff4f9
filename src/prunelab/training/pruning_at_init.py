"""When to prune: at on_fit_start, with the weights in place and before the first step."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelab.compaction import ChannelIndex, CompactionError, compact, shrink
from prunelab.pruning import Criterion, Masks, PruningError, Scoring, prunable_names, prune
from prunelab.pruning.allocation import Allocation
from prunelab.pruning.density import density_from
from prunelab.pruning.gradients import scoring_loss
from prunelab.pruning.preflight import Preflight, preflight
from prunelab.pruning.schedules import Schedule
from prunelab.pruning.scoring import Batch, Loss
from prunelab.pruning.selection import Scope
from prunelab.pruning.transfer import transferred
from prunelab.training import compacting
from prunelab.training.dead_weights import DeadWeights
from prunelab.training.keep_pruned import KeepPruned, weight_averages
from prunelab.training.network import find_network, like_weights, load_weights
from prunelab.training.ranks import check_alike
from prunelab.training.scoring_data import example_input, scoring_batches
from prunelab.training.sharded import check_sharded, check_strategy, reshard, restores_late, whole_copy
from prunelab.training.ticket import Ticket, weights_in_place

SAMPLES_PER_CLASS = 10


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
        self.index: ChannelIndex | None = None
        self.not_compacted: str | None = None
        self.masks: Masks | None = None
        self.preflight: Preflight | None = None
        self.seconds_scoring = 0.0
        self.frozen: dict[str, Tensor] | None = None
        self.ticket = Ticket()
        self.follows_dead_weights = False
        self.given: Masks | None = None
        self.given_digest: str | None = None
        self.dead: DeadWeights | None = None
        self._is_new = False
        self._full_parameters: list[nn.Parameter] = []
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
            net = find_network(pl_module, self.net)
            self._check_compactible(trainer, net)
            if self.masks is None:
                compacting.start_together(trainer, net, self.ticket.start)
                masks = self._prune(trainer, pl_module, net)
                self._find_channels(trainer, pl_module, net, masks)
                self._is_new = True
            if self.index is not None:
                self._full_parameters = list(net.parameters())
                shrink(net, self.index)
                compacting.accept_full_weights(net, self.index)

    def _check_compactible(self, trainer: Trainer, net: nn.Module) -> None:
        if self.masks is None and compacting.is_compact(net):
            raise PruningError("compact: the network is a compact one already, its masks would not be the full one's")
        if weight_averages(trainer):
            raise PruningError("compact: PruningAtInit goes before weight averaging, which copies the network")
        if (self.ticket.mask_1, self.ticket.keep_sign, self.ticket.mask_0) != ("rewind", False, "zero"):
            raise PruningError("compact: goes with kept weights that rewind and pruned weights that are 0")

    def _find_channels(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module, masks: Masks) -> None:
        """Before the network has found its place in the Trainer: it goes where it will train by itself."""
        example = self._example(trainer, pl_module, net)
        try:
            small = compact(net, masks, example, multiple=self.compact_multiple)
        except CompactionError as error:
            self.not_compacted = str(error)
            warnings.warn(f"not compacted, trains masked: {error}", stacklevel=2)
            return
        self.index = small.index
        if self.follows_dead_weights:
            self.dead = DeadWeights.of(net, masks, small.index)
        if trainer.is_global_zero:
            print(compacting.summary(net, small, masks, example), flush=True)

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
        if self.index is not None:
            self._join_optimizers(trainer, net, self.index)
        if trainer.is_global_zero and not self._is_new:
            print(f"masks already there, density {self.masks.density:.6g}: scoring skipped", flush=True)
        self._is_new = False

    def _join_optimizers(self, trainer: Trainer, net: nn.Module, index: ChannelIndex) -> None:
        """Raises: PruningError for an optimizer that has the full network's parameters."""
        gone = {id(parameter) for parameter in self._full_parameters} - {id(own) for own in net.parameters()}
        self._full_parameters = []
        for optimizer in trainer.optimizers:
            if any(id(parameter) in gone for group in optimizer.param_groups for parameter in group["params"]):
                raise PruningError(
                    "compact: the optimizer was given parameters before the network became smaller; take them in "
                    "configure_optimizers"
                )
            if self.dead is not None:
                self.dead.follow(optimizer, net)
            compacting.accept_full_slots(optimizer, net, index)

    def _prune(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> Masks:
        started = time.monotonic()
        with isolate_rng():  # the training's own random draws must not depend on how it was pruned
            # rank 0's seed: ranks that were seeded apart must still find one mask
            seed = trainer.strategy.broadcast(torch.initial_seed() if self.seed is None else self.seed)
            torch.manual_seed(seed)  # of the loader that scoring may read
            whole = whole_copy(net) if restores_late(trainer) else net
            with weights_in_place(whole, self.ticket.weights), _one_thread():
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
        self._judge(self.preflight)
        _notify(trainer, "on_pruned", pl_module, self.preflight, found.scores or {}, self.masks)
        return self.masks

    def _example(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> Tensor:
        return like_weights(example_input(trainer, pl_module, self._given_batches()), net)

    def _given_batches(self) -> Sequence[Batch] | None:
        if self.batches is not None and not isinstance(self.batches, Sequence):
            self.batches = list(self.batches)  # it may be readable only once
        return self.batches

    def _find(self, trainer: Trainer, pl_module: LightningModule, net: nn.Module, generator: torch.Generator) -> _Found:
        names = prunable_names(net, self.include, self.exclude)
        example = self._example(trainer, pl_module, net)
        given = self._given(net, names)
        if given is None:
            start = self.ticket.masks.to(example.device) if self.ticket.masks else None
            start = start or Masks.dense(net, names)
            return self._score(trainer, pl_module, net, start, example, generator)
        return _Found(given, self._preflight(net, given, example, density_requested=given.density), None)

    def _given(self, net: nn.Module, names: Sequence[str]) -> Masks | None:
        if self.given is None and self.masks_from is not None:
            self.given = load_masks(self.masks_from)
        if self.given is None:
            return None
        self.given_digest = self.given.digest()
        return transferred(self.given, net, names)

    def _score(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        net: nn.Module,
        start: Masks,
        example: Tensor,
        generator: torch.Generator,
    ) -> _Found:
        criterion, density = self.criterion, check_density_given(self.density)
        if criterion is None:
            raise RuntimeError("there is neither a criterion nor masks")
        batches = self._batches(criterion, trainer, net, example)
        num_rounds = criterion.rounds if self.rounds is None else self.rounds
        last: dict[str, Any] = {"scores": None, "scored": start, "kept": start}

        def on_round(index: int, density: float, scores: Mapping[str, Tensor], masks: Masks) -> None:
            last.update(scores=scores, scored=start if criterion.revives else last["kept"], kept=masks)
            _notify(trainer, "on_pruning_round", pl_module, index, num_rounds, density, scores, masks)

        masks = prune(
            net,
            criterion,
            density=density,
            example_input=example,
            masks=start,
            batches=batches,
            rounds=self.rounds,
            schedule=self.schedule,
            scope=self.scope,
            allocation=self.allocation,
            min_layer_density=self.min_layer_density,
            on_round=on_round,
            loss=self.loss,
            initial=self.ticket.initial,
            generator=generator,
        )
        loss = None
        if batches:
            scoring = Scoring(net, start, example, batches=batches, loss=self.loss)
            loss = scoring_loss(scoring, batch_norm=getattr(criterion, "batch_norm", "running"))
        report = self._preflight(
            net,
            masks,
            example,
            density_requested=density,
            scores=last["scores"],
            scored_masks=last["scored"],
            scoring_loss=loss,
        )
        return _Found(masks, report, last["scores"])

    def _batches(
        self,
        criterion: Criterion,
        trainer: Trainer,
        net: nn.Module,
        example: Tensor,
    ) -> list[Batch]:
        if not criterion.needs_batches:
            return []
        samples = SAMPLES_PER_CLASS if self.samples_per_class is None else self.samples_per_class
        found = scoring_batches(trainer, self._given_batches(), samples, net, example)
        return [tuple(like_weights(part, net) for part in batch[:2]) for batch in found]

    def _preflight(self, *measured: Any, **settings: Any) -> Preflight:
        return preflight(*measured, **settings, needs_path=self.on_collapse != "train")

    def _judge(self, report: Preflight) -> None:
        if report.effective_density == 0:
            warnings.warn("no path leads from input to output: only what lies behind the break can learn", stacklevel=2)
        if not report.collapsed_layers:
            return
        message = f"layer collapse: {', '.join(report.collapsed_layers)} kept no weight"
        if self.on_collapse == "fail":
            raise PruningError(message)
        warnings.warn(message, stacklevel=2)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.index is not None:
            net = find_network(pl_module, self.net)
            checkpoint[compacting.KEY] = compacting.described(self.net, net, self.index, trainer.optimizers)
            if self.dead is not None:
                checkpoint[compacting.KEY]["dead"] = self.dead.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if (index := compacting.index_in(checkpoint)) is not None:
            self.index = index

    def resume_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Take masks and channels from a checkpoint (as read from its file) that `fit` will be given: with `compact`
        the network has to have its size before Lightning reads it. Nothing happens if it holds no masks.
        """
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is not None and state["masks"] is not None:
            self.load_state_dict(state)
            self.index = compacting.index_in(checkpoint)
            if "dead" in checkpoint.get(compacting.KEY, {}):
                self.dead = DeadWeights.from_state(checkpoint[compacting.KEY]["dead"])

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
        self.not_compacted = state_dict.get("not_compacted")  # checkpoints from before compaction lack it


@dataclass(frozen=True)
class _Found:
    masks: Masks
    report: Preflight
    scores: dict[str, Tensor] | None


def check_density_given(density: float | None) -> float:
    """Raises: PruningError if there is none."""
    if density is None:
        raise PruningError("give exactly one of density, sparsity and compression_ratio, got none of them")
    return density


def load_masks(path: str) -> Masks:
    """Raises: PruningError if the file is missing or holds no masks."""
    try:
        return Masks.load(path)
    except OSError as error:
        raise PruningError(f"masks_from: there is no masks file {path}") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for all that decides about masks, in every process of every run.

    Launchers give each of n processes an n-th of the cores, and another number of threads adds up in another order, in
    float64 too: the last bits of the scores differ, and with them, where two are nearly equal, the masks. One is the
    number that every process has a core for.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _notify(trainer: Trainer, hook: str, pl_module: LightningModule, *arguments: Any) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, pl_module, *arguments)
