"""Passes of the positive linear network in little memory: absolute weights and gradients exist for one layer at a time.

A pass makes a layer's masked absolute weights when the signal gets there and forgets them. Backwards it makes them
again, and the gradient is looked at and forgotten as soon as it is there. Of linear layers that get one row, a few rows
of weights are made at a time, so that nothing of the size of the layer ever exists.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map

from prunelab.pruning.blocks import ABOUT
from prunelab.pruning.flow import NotHeldError, around_tensors, trial, untouched_buffers
from prunelab.pruning.rescaling import InRange
from prunelab.pruning.scoring import evaluation_mode, exact_pass
from prunelab.pruning.surrogate import PositiveLinear, output_under, surrogate_tensors

BLOCK = 1 << 19  # weights that are made and looked at together: they and their gradients stay in the cache
# A BLAS takes several rows at once and what is left in another way: in multiples of this number sums over a row came
# out as the whole layer's, to the last bit, where that was tried. Sums over rows are made block by block
_ROWS = 48
INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32}  # the bits of a number
# (layer, first position, scores, whether kept) of a part of a layer; scores are 0 where nothing is kept, and the
# visitor's to overwrite
Visitor = Callable[[str, int, Tensor, Tensor], None]


class _WeightInPass(torch.autograd.Function):
    """Masked absolute weights of a layer; its gradient goes to `receive` and no further."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, make: Callable[[], Tensor], receive: Callable[[Tensor], None]) -> Tensor:
        ctx.receive = receive
        return make()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.receive(gradients[0])
        return None, None, None


class _LinearInPass(torch.autograd.Function):
    """A linear layer; the gradient of its weights stays in `back`: (input, gradient of the output) -> of the input."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        input: Tensor,
        forth: Callable[[Tensor], Tensor],
        back: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(input)
        ctx.back = back
        return forth(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, ctx.back(*ctx.saved_tensors, gradients[0]), None, None


class StreamedFlow(PositiveLinear):
    """The positive linear network, whose weights are made on the way.

    masks: name -> kept weights; they may change between passes, and those of a layer while its scores are looked at.
    Raises: NotHeldError if the modules cannot be copied, or a pass uses a weight more than once.
    """

    def __init__(
        self,
        net: nn.Module,
        masks: dict[str, Tensor],
        dtype: torch.dtype,
        *,
        power: int = 1,
        activations: str = "identity",
        times_weight: bool = True,
    ) -> None:
        self.masks, self._dtype, self._times_weight = masks, dtype, times_weight
        self._original = net
        parameters = dict(net.named_parameters())
        self._originals = {name: parameters[name].detach() for name in masks}
        # of the others what the pass needs; the large ones stay what they are
        tensors = surrogate_tensors(net, self._originals, dtype, power)
        constant = [tensor for name, tensor in tensors.items() if name not in masks]
        super().__init__(activations=activations, power=power, constant=constant)
        self._net = around_tensors(net, tensors)
        self._names = {id(tensor): name for name, tensor in self._originals.items()}
        self._anchor = torch.zeros((), dtype=dtype, requires_grad=True, device=next(iter(masks.values())).device)
        self._alive: dict[str, weakref.ref[Tensor]] = {}
        self._used: set[str] = set()
        self._received: set[str] = set()
        self._in_range = InRange(self._net)
        self._visit: Visitor = _pass_by
        self._divisor = 1.0
        # two places for parts of layers, kept from pass to pass: the heap would get holes
        self._rooms = [torch.empty(0, dtype=dtype), torch.empty(0, dtype=dtype)]

    def scan(self, inputs: Tensor, visit: Visitor, *, of_log: bool = False) -> None:
        """One pass forwards and backwards; `visit` sees the scores."""
        self._visit = visit
        try:
            with exact_pass([self._anchor.device]), saved_tensors_hooks(self._pack, self._unpack):
                total = self._in_range.total(self._run, inputs)
                self._divisor = (total.item() if of_log else 1.0) or 1.0
                torch.autograd.grad(total, self._anchor, allow_unused=True)
        finally:
            self._visit = _pass_by  # a visitor that holds this object would stay with it until garbage is collected

    def try_once(self, inputs: Tensor) -> None:
        """Raises: NotHeldError for networks that have to be gone through in another way."""
        with evaluation_mode(self._original), untouched_buffers(self._original):
            trial(lambda: self.scan(inputs, _pass_by))
        if missing := self._originals.keys() - self._received:
            raise NotHeldError(f"no gradient reaches {', '.join(sorted(missing)[:3])} in a pass")

    def _run(self, inputs: Tensor) -> Tensor:
        self._used.clear()
        self._received.clear()
        return output_under(self, self._net, inputs)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and (output := self._linear(*args, **(kwargs or {}))) is not None:
            return output
        if func not in ABOUT:
            args, kwargs = tree_map(self._in_pass, (args, kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        name = self._names.get(id(weight))
        if name is None or weight.dim() != 2 or input.numel() != weight.shape[1]:  # not one row
            return None
        self._use(name)
        return _LinearInPass.apply(self._anchor, input, partial(self._forth, name), partial(self._back, name))

    def _in_pass(self, value: Any) -> Any:
        name = self._names.get(id(value))  # the originals are held: no other tensor gets their number
        if name is None:
            return value
        self._use(name)
        weight = _WeightInPass.apply(self._anchor, partial(self._made, name), partial(self._receive, name))
        self._alive[name] = weakref.ref(weight)
        return weight

    def _use(self, name: str) -> None:
        if name in self._used:
            raise NotHeldError(f"{name} is used more than once in a pass, its gradients would have to be added up")
        self._used.add(name)

    def _made(self, name: str) -> Tensor:
        weight = self._originals[name]
        return self._fill(torch.empty_like(weight, dtype=self._dtype), weight, self.masks[name])

    def _fill(self, room: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
        """Absolute weights, 0 where they are not kept."""
        room.copy_(weight).abs_()
        if self.power != 1:
            room.pow_(self.power)
        self._clear(room, kept)
        return room

    def _clear(self, room: Tensor, kept: Tensor) -> None:
        """0 where nothing is kept."""
        # of the bits, as 0 times NaN is NaN; masked_fill_ and where take several times as long, and torch's product
        # first makes numbers of all of the mask, which leaves holes in the heap
        bits = room.view(INTEGERS[self._dtype]).numpy()
        np.multiply(bits, kept.numpy(), out=bits)

    def _pack(self, tensor: Tensor) -> Any:
        """What autograd would keep for the way back: of a layer's weights (or a view of them) only how to make them."""
        for name, reference in list(self._alive.items()):
            weight = reference()
            if weight is None:
                del self._alive[name]
            elif weight.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
                return name, tensor.shape, tensor.stride(), tensor.storage_offset()
        return tensor

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        name, *where = packed
        return self._made(name).as_strided(*where)

    def _receive(self, name: str, gradient: Tensor) -> None:
        self._received.add(name)
        gradients, weights, kept = gradient.reshape(-1), self._originals[name].reshape(-1), self.masks[name].view(-1)
        for start in range(0, len(gradients), BLOCK):
            part = slice(start, start + BLOCK)
            room = self._room(0, *gradients[part].shape)
            self._look(name, start, self._fill(room, weights[part], kept[part]), gradients[part])

    def _room(self, which: int, *shape: int) -> Tensor:
        if len(self._rooms[which]) < math.prod(shape):
            self._rooms[which] = torch.empty(math.prod(shape), dtype=self._dtype)
        return self._rooms[which][: math.prod(shape)].view(shape)

    def _blocks(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Rows of a layer and their weights, all made in the same place."""
        weights, kept = self._originals[name], self.masks[name]
        num_rows, length = weights.shape
        step = max(BLOCK // length // _ROWS, 1) * _ROWS
        for start in range(0, num_rows, step):
            rows = slice(start, min(start + step, num_rows))
            yield rows, self._fill(self._room(0, rows.stop - start, length), weights[rows], kept[rows])

    def _forth(self, name: str, input: Tensor) -> Tensor:
        return torch.cat([F.linear(input, weights) for _, weights in self._blocks(name)], dim=-1)

    def _back(self, name: str, input: Tensor, gradient: Tensor) -> Tensor:
        self._received.add(name)
        row, out = input.reshape(1, -1), gradient.reshape(1, -1)
        entering = torch.zeros_like(row)
        for rows, weights in self._blocks(name):
            entering.addmm_(out[:, rows], weights)
            gradients = torch.mul(out[0, rows, None], row, out=self._room(1, *weights.shape))
            self._look(name, rows.start * row.shape[1], weights.view(-1), gradients.view(-1))
        return entering.view_as(input)

    def _look(self, name: str, start: int, weights: Tensor, gradients: Tensor) -> None:
        """Scores are made in the place of the weights."""
        kept = self.masks[name].view(-1)[start : start + len(weights)]
        if self._times_weight:
            scores = weights.mul_(gradients)
        else:
            scores = weights.copy_(gradients)
            self._clear(scores, kept)
        if self._divisor != 1:
            scores.div_(self._divisor)
        self._visit(name, start, scores, kept)


def _pass_by(name: str, start: int, scores: Tensor, kept: Tensor) -> None:
    """The visitor that looks at nothing."""
