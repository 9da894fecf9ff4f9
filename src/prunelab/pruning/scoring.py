"""Scoring: all that a criterion may look at, and the ways to evaluate a network without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from prunelab.pruning.errors import PruningError
from prunelab.pruning.masks import Masks
from prunelab.pruning.prunable import prunable_names

Batch = Sequence[Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scoring:
    """What a criterion may look at. `net` holds its original weights: a criterion evaluates w * mask.

    example_input: any tensor that the network accepts, first dimension 1; only its shape and dtype count.
    batches: (inputs, labels) pairs on the network's device, the same ones at every reading (a list, not a generator).
    loss: (outputs, labels) -> mean loss of the batch. initial: weights at initialisation, for criteria that compare
    (in a run with levels those at the rewind point).
    generator: source of all random draws; None means a new one with seed 0. round: from 0.
    """

    net: nn.Module
    masks: Masks
    example_input: Tensor
    batches: Iterable[Batch] = ()
    loss: Loss = cross_entropy
    initial: Mapping[str, Tensor] | None = None
    generator: torch.Generator | None = None
    round: int = 0

    def weights(self) -> dict[str, Tensor]:
        """The prunable weights as they stand in the network, detached, in the order of the masks."""
        parameters = dict(self.net.named_parameters())
        missing = [name for name in self.masks if name not in parameters]
        if missing:
            raise PruningError(f"the masks name parameters that the network does not have: {missing}")
        return {name: parameters[name].detach() for name in self.masks}


@runtime_checkable
class Criterion(Protocol):
    """Scores weights, higher = keep. Fields are its knobs; the call is the formula; it changes nothing.

    rounds: score-select rounds that its authors use. needs_batches: whether it reads `Scoring.batches`.
    revives: whether selection in round k starts from all weights that `prune` was given, so that weights dropped in
    round k-1 may come back. allocation: densities per layer that belong to the method, None = all layers compete.
    """

    @property
    def rounds(self) -> int: ...

    @property
    def needs_batches(self) -> bool: ...

    revives: ClassVar[bool]
    allocation: ClassVar[str | None]

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]: ...


class Rounds(Protocol):
    """The state of an iterative criterion over all its rounds, with one threshold for all layers in each."""

    def score(self) -> Mapping[str, Tensor]:
        """Scores of the weights that are kept; to be read before the next round."""
        ...

    def keep(self, num_kept: int) -> None:
        """Keep so many of the highest of the last scores, as `keep_highest` does."""
        ...

    def masks(self) -> Masks: ...

    def end(self) -> None:
        """After the last round. Raises: PruningError if something was wrong that could not be said before."""
        ...


@runtime_checkable
class HoldsRounds(Protocol):
    """A criterion with a faster or leaner way through many rounds than to score each by itself.

    The masks are the same, but where only rounding tells scores at a threshold apart.
    """

    def rounds_of(self, scoring: Scoring) -> Rounds | None:
        """None: there is no other way for these knobs or this network. `scoring.masks`: what the rounds start from."""
        ...


@contextmanager
def evaluation_mode(net: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """The network in eval mode (`batch_statistics`: its batch norms in train mode), autocast off, gradients on.

    On leaving, every module's `training` flag and the global random state are what they were.
    """
    flags = {module: module.training for module in net.modules()}
    try:
        with exact_pass({parameter.device for parameter in net.parameters()}):
            for module in flags:
                module.training = batch_statistics and isinstance(module, nn.modules.batchnorm._BatchNorm)
            yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def exact_pass(devices: Collection[torch.device]) -> Iterator[None]:
    """Autocast off, gradients on; on leaving, the global random state (of `devices` too) is what it was."""
    gpus = sorted({device for device in devices if device.type == "cuda"}, key=str)
    device_types = sorted({device.type for device in devices} | {"cpu"})
    with torch.random.fork_rng(devices=gpus), torch.enable_grad(), _no_autocast(device_types):
        yield


@contextmanager
def _no_autocast(device_types: Sequence[str]) -> Iterator[None]:
    if not device_types:
        yield
        return
    with torch.autocast(device_types[0], enabled=False), _no_autocast(device_types[1:]):
        yield


def call_with(net: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> Any:
    """net(inputs) with some of its tensors replaced; buffers that a forward pass writes to are copies."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers() if name not in tensors}
    return functional_call(net, {**buffers, **tensors}, (inputs,))


def score(
    net: nn.Module,
    criterion: Criterion,
    *,
    example_input: Tensor,
    masks: Masks | None = None,
    batches: Iterable[Batch] = (),
    **scoring: Any,
) -> dict[str, Tensor]:
    """The scores of `criterion` for `net` under `masks` (default: all convolution and linear weights kept).

    Returns name -> tensor of the weight's shape, higher = keep. The network is unchanged.
    Further keywords: those of `Scoring` (loss, initial, generator, round).
    Raises: PruningError if the criterion needs batches and there are none, or if scores are inf or NaN; ValueError if
    the scores do not have the masks' names and shapes.
    """
    if masks is None:
        masks = Masks.dense(net, prunable_names(net))
    check_batches(criterion, batches)
    scores = criterion(Scoring(net, masks, example_input, batches=batches, **scoring))
    if scores.keys() != masks.keys():
        raise ValueError(
            f"{type(criterion).__name__} scored {sorted(scores.keys() ^ masks.keys())} too many or too few"
        )
    for name, values in scores.items():
        if values.shape != masks[name].shape:
            raise ValueError(f"{type(criterion).__name__} gave {name} scores of shape {tuple(values.shape)}")
        if not bool(torch.isfinite(values).all()):
            raise PruningError(
                f"{type(criterion).__name__} gave {name} scores that are inf or NaN: its weights are, or the signal "
                "overflows in this network"
            )
    return scores


def check_batches(criterion: Criterion, batches: Iterable[Batch]) -> None:
    """Raises: PruningError if the criterion needs batches and there are none, or they can be read only once."""
    if criterion.needs_batches and not _has_batches(batches):
        raise PruningError(f"{type(criterion).__name__} needs labelled batches to score with, none were given")


def _has_batches(batches: Iterable[Batch]) -> bool:
    with torch.random.fork_rng(devices=[]):  # data loaders draw when iteration starts
        iterator = iter(batches)
        if iterator is batches:
            raise PruningError("scoring batches must be readable more than once: give a list, not a generator")
        return next(iterator, None) is not None
