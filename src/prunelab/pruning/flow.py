"""Many passes of the positive linear network: what does not change from pass to pass is made once."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from prunelab.pruning.blocks import Block, BlockPass, Uses
from prunelab.pruning.errors import PruningError
from prunelab.pruning.rescaling import InRange
from prunelab.pruning.scoring import evaluation_mode, exact_pass
from prunelab.pruning.surrogate import output_under, surrogate_output, surrogate_tensors

Result = TypeVar("Result")


class NotHeldError(PruningError):
    """The network cannot be gone through in this way; scoring each round by itself may work."""


def around_tensors(net: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the modules, in eval mode, that holds `tensors` in place of its parameters and buffers.

    Raises: NotHeldError if the modules cannot be copied.
    """
    own = dict(net.named_parameters()) | dict(net.named_buffers())
    try:
        return copy.deepcopy(net, {id(tensor): tensors[name] for name, tensor in own.items()}).eval()
    except Exception as error:  # tensors that were computed, locks, open files, ...
        raise NotHeldError(f"the network cannot be copied: {str(error).splitlines()[0]}") from error


def trial(run: Callable[[], Result]) -> Result:
    """Raises: NotHeldError for whatever goes wrong."""
    try:
        return run()
    except NotHeldError:
        raise
    except Exception as error:
        raise NotHeldError(f"a copy of the network cannot be run: {str(error).splitlines()[0]}") from error


@contextmanager
def untouched_buffers(net: nn.Module) -> Iterator[None]:
    """A copy of a network may have parts that are the original's: what they write is taken back."""
    before = [(buffer, buffer._version, buffer.clone()) for buffer in net.buffers()]
    try:
        yield
    finally:
        for buffer, version, value in before:
            if buffer._version != version:
                buffer.copy_(value)


class Flow:
    """The positive linear network of `net` with the tensors `weights` (absolute values, they may change in place).

    A copy of the modules around these tensors: nothing is swapped in and out for a pass, and factors of norms are held.
    Raises: NotHeldError if the modules cannot be copied, or the copy gives another output for `inputs`.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, Tensor],
        inputs: Tensor,
        *,
        power: int = 1,
        activations: str = "identity",
    ) -> None:
        self.weights = list(weights.values())
        self._device, dtype = self.weights[0].device, self.weights[0].dtype
        tensors = surrogate_tensors(net, weights, dtype, power)
        self._net = around_tensors(net, tensors)
        constant = [tensor for name, tensor in tensors.items() if name not in weights]
        self._mode = BlockPass(activations=activations, power=power, constant=constant)
        self._in_range = InRange(self._net)
        with evaluation_mode(net), torch.no_grad(), untouched_buffers(net):
            wanted = surrogate_output(net, tensors, inputs, power=power, activations=activations)
            with Uses(self.weights) as self.uses:
                found = trial(lambda: self._run(inputs))
        if not torch.equal(wanted.nan_to_num(), found.nan_to_num()):
            raise NotHeldError("a copy of the network gives another output: a part of it stays with the original")

    def gradients(self, inputs: Tensor, blocks: Sequence[Block] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """R and its gradients for the weights, both times the same power of two (see `InRange`).

        blocks: parts of the weights to go through, and have gradients for, in their place.
        """
        leaves = self.weights if blocks is None else [block.weight for block in blocks]
        pairs = zip(self.weights, blocks or (), strict=False)
        self._mode.blocks = {id(weight): block for weight, block in pairs}
        with exact_pass([self._device]):
            total = self._in_range.total(self._run, inputs)
            return total, torch.autograd.grad(total, leaves, materialize_grads=True)

    def _run(self, inputs: Tensor) -> Tensor:
        return output_under(self._mode, self._net, inputs)


class RoundScores(Mapping[str, Tensor]):
    """name -> scores of a round, made at every reading.

    Raises: RuntimeError for a reading after the next round has begun: what they are made of is overwritten.
    """

    def __init__(self, names: Collection[str], make: Callable[[str], Tensor]) -> None:
        self._names = names
        self._make: Callable[[str], Tensor] | None = make

    def close(self) -> None:
        self._make = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._make is None:
            raise RuntimeError("scores of an earlier round: read or copy them in on_round, before the next one begins")
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class LastScores:
    """Gives the scores of each round, and closes those of the round before.

    They are held weakly: while somebody holds them they hold the state of the rounds, which has this object.
    """

    def __init__(self) -> None:
        self._given: weakref.ref[RoundScores] | None = None

    def close(self) -> None:
        if self._given is not None and (scores := self._given()) is not None:
            scores.close()

    def give(self, names: Collection[str], make: Callable[[str], Tensor]) -> RoundScores:
        self.close()
        scores = RoundScores(names, make)
        self._given = weakref.ref(scores)
        return scores
