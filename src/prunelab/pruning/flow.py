"""Many rounds of SynFlow on one network: what does not change from round to round is made once.

Scores and masks are those of scoring each round by itself: the same operations in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from prunelab.pruning.errors import PruningError
from prunelab.pruning.masks import Masks
from prunelab.pruning.rescaling import InRange
from prunelab.pruning.scoring import evaluation_mode, exact_pass
from prunelab.pruning.surrogate import PositiveLinear, output_under, surrogate_output, surrogate_tensors
from prunelab.pruning.survivors import FixedSurvivors, SurvivorLists

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
        self._weights = list(weights.values())
        self._device, dtype = self._weights[0].device, self._weights[0].dtype
        tensors = surrogate_tensors(net, weights, dtype, power)
        self._net = around_tensors(net, tensors)
        constant = [tensor for name, tensor in tensors.items() if name not in weights]
        self._mode = PositiveLinear(activations=activations, power=power, constant=constant)
        self._in_range = InRange(self._net, self._run)
        with evaluation_mode(net), torch.no_grad(), untouched_buffers(net):
            wanted = surrogate_output(net, tensors, inputs, power=power, activations=activations)
            found = trial(lambda: self._run(inputs))
        if not torch.equal(wanted.nan_to_num(), found.nan_to_num()):
            raise NotHeldError("a copy of the network gives another output: a part of it stays with the original")

    def gradients(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """R and its gradients for the weights, both times the same power of two (see `InRange`)."""
        with exact_pass([self._device]):
            total = self._in_range.total(inputs)
            return total, torch.autograd.grad(total, self._weights, materialize_grads=True)

    def _run(self, inputs: Tensor) -> Tensor:
        return output_under(self._mode, self._net, inputs)


class FlowRounds:
    """The state of SynFlow's rounds: scores, values and positions of the kept weights stay in lists beside the network.
    Measured, network included, with 1e8 weights and only 3 rounds, which drop most of them at once: 14 times the bytes
    of the float32 weights in float64, 11 times in float32.

    masks: what the first round starts from. times_weight: whether the score is gradient times weight. of_log: whether
    scores are those of log R, those of R over R. check: is given the number of scores that are 0 of each layer, once.
    """

    def __init__(
        self,
        net: nn.Module,
        masks: Masks,
        inputs: Tensor,
        *,
        power: int = 1,
        activations: str = "identity",
        times_weight: bool = True,
        of_log: bool = False,
        check: Callable[[dict[str, int]], None],
    ) -> None:
        parameters = dict(net.named_parameters())
        self._inputs, self._of_log = inputs, of_log
        self._shapes = {name: mask.shape for name, mask in masks.items()}
        kept = torch.cat([mask.flatten() for mask in masks.values()])
        # one buffer for all weights, which the network sees in parts
        self._flat = torch.cat([parameters[name].detach().flatten().to(inputs.dtype) for name in masks])
        self._flat.abs_().pow_(power).masked_fill_(~kept, 0)
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), self._flat.split(sizes), strict=True)
        weights = {name: part.detach().view(shape).requires_grad_() for (name, shape), part in parts}
        self._flow = Flow(net, weights, inputs, power=power, activations=activations)
        values = self._flat if times_weight else torch.ones_like(self._flat)
        kind = SurvivorLists if inputs.device.type == "cpu" else FixedSurvivors
        self._survivors: SurvivorLists | FixedSurvivors = kind(values, kept, sizes, masks.num_kept)
        self._check: Callable[[dict[str, int]], None] | None = check
        self._scores = RoundScores(self._shapes, self._scores_of)

    def score(self) -> Mapping[str, Tensor]:
        """Scores of the weights that are kept, 0 for the others: made when they are read, until the next round."""
        self._scores.close()
        total, gradients = self._flow.gradients(self._inputs)
        divisor = total.item() if self._of_log else 1.0
        self._survivors.score(gradients, divisor or 1.0)
        self._scores = RoundScores(self._shapes, self._scores_of)
        if self._check is not None:
            self._check({name: int((scores == 0).sum()) for name, scores in self._scores.items()})
            self._check = None
        return self._scores

    def _scores_of(self, name: str) -> Tensor:
        return self._survivors.scores(list(self._shapes).index(name)).view(self._shapes[name])

    @torch.no_grad()
    def keep(self, num_kept: int) -> None:
        """Keep so many of the highest of the last scores."""
        self._survivors.drop(num_kept, self._flat)

    def masks(self) -> Masks:
        """What is kept now."""
        parts = zip(self._shapes.items(), self._survivors.kept_by_layer(), strict=True)
        return Masks({name: part.view(shape) for (name, shape), part in parts})

    def end(self) -> None:
        """After the last round. Raises: PruningError if scores of any were inf or NaN."""
        self._survivors.check()


class RoundScores(Mapping[str, Tensor]):
    """name -> scores of a round, made at every reading.

    Raises: RuntimeError for a reading after the next round has begun: what they are made of is overwritten.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], make: Callable[[str], Tensor]) -> None:
        self._shapes = shapes
        self._make: Callable[[str], Tensor] | None = make

    def close(self) -> None:
        self._make = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        if self._make is None:
            raise RuntimeError("scores of an earlier round: read or copy them in on_round, before the next one begins")
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
