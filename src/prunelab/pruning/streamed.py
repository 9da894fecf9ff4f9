"""SynFlow's rounds in little memory: absolute weights, gradients and scores exist for one layer at a time.

A pass makes a layer's masked absolute weights when the signal gets there and forgets them. Backwards it makes them
again, and the gradient is looked at and forgotten as soon as it is there. Two passes find the threshold of a round: the
first counts scores in bins, the second drops what is below the threshold's bin and collects what is in it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map

from prunelab.pruning.errors import PruningError
from prunelab.pruning.flow import NotHeldError, RoundScores, around_tensors, trial, untouched_buffers
from prunelab.pruning.masks import Masks
from prunelab.pruning.rescaling import InRange
from prunelab.pruning.scoring import evaluation_mode, exact_pass
from prunelab.pruning.selection import kth_smallest
from prunelab.pruning.surrogate import PositiveLinear, output_under, surrogate_tensors
from prunelab.pruning.survivors import NEGATIVE, OVERFLOW

CHUNK = 1 << 20  # weights that are looked at together
_BIN_BITS = 20
Visitor = Callable[[str, int, Tensor, Tensor], None]  # (layer, first position, scores, whether kept) of a chunk
# what may be asked of a weight without using it
_ABOUT = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda")
    ),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.is_floating_point),
}


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


class StreamedFlow(PositiveLinear):
    """The positive linear network, whose weights are made on the way.

    masks: name -> kept weights; they may change between passes, and those of a layer once its gradient has been seen.
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
        self._in_range = InRange(self._net, self._run)
        self._visit: Visitor = lambda name, start, scores, kept: None
        self._divisor = 1.0

    def scan(self, inputs: Tensor, visit: Visitor, *, of_log: bool = False) -> None:
        """One pass forwards and backwards; `visit` sees the scores."""
        self._visit = visit
        with exact_pass([self._anchor.device]), saved_tensors_hooks(self._pack, self._unpack):
            total = self._in_range.total(inputs)
            self._divisor = (total.item() if of_log else 1.0) or 1.0
            torch.autograd.grad(total, self._anchor, allow_unused=True)

    def try_once(self, inputs: Tensor) -> None:
        """Raises: NotHeldError for networks that have to be gone through in another way."""
        with evaluation_mode(self._original), untouched_buffers(self._original):
            trial(lambda: self.scan(inputs, lambda name, start, scores, kept: None))
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
        if func not in _ABOUT:
            args, kwargs = tree_map(self._in_pass, (args, kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def _in_pass(self, value: Any) -> Any:
        name = self._names.get(id(value))  # the originals are held: no other tensor gets their number
        if name is None:
            return value
        if name in self._used:
            raise NotHeldError(f"{name} is used more than once in a pass, its gradients would have to be added up")
        self._used.add(name)
        weight = _WeightInPass.apply(
            self._anchor, lambda: self._made(name), lambda gradient: self._receive(name, gradient)
        )
        self._alive[name] = weakref.ref(weight)
        return weight

    def _made(self, name: str) -> Tensor:
        weight = self._originals[name].to(self._dtype, copy=True).abs_()
        if self.power != 1:
            weight.pow_(self.power)
        return weight.masked_fill_(~self.masks[name], 0)

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
        flat = gradient.reshape(-1)
        weight, mask = self._originals[name].reshape(-1), self.masks[name].view(-1)
        for start in range(0, len(flat), CHUNK):
            part = slice(start, start + CHUNK)
            scores = flat[part]
            if self._times_weight:
                factor = weight[part].to(self._dtype, copy=True).abs_()
                scores = factor.pow_(self.power).mul_(scores) if self.power != 1 else factor.mul_(scores)
            if self._divisor != 1:
                scores = scores / self._divisor
            self._visit(name, start, scores, mask[part])


class StreamedRounds:
    """The state of SynFlow's rounds: masks (three bool tensors at most) and, in a pass, what one layer needs. Measured,
    network included, with 1e8 weights in 10 layers: 3 to 4 times the bytes of the float32 weights in float64, 3 times
    in float32, of which the heap's holes are a part. Selects as `keep_highest` does. On the CPU only.

    Arguments as those of `FlowRounds`.
    """

    def __init__(
        self,
        net: nn.Module,
        masks: Masks,
        inputs: Tensor,
        *,
        of_log: bool = False,
        check: Callable[[dict[str, int]], None],
        **flow: Any,
    ) -> None:
        kept = {name: mask.contiguous() for name, mask in masks.items()}
        self._before = kept
        self._flow = StreamedFlow(net, kept, inputs.dtype, **flow)
        self._inputs, self._of_log = inputs, of_log
        self._check: Callable[[dict[str, int]], None] | None = check
        self._num_kept = masks.num_kept
        self._shapes = {name: mask.shape for name, mask in kept.items()}
        self._flow.try_once(inputs)
        # numbers >= 0 sort as their bits do
        self._integers, self._num_bits = (torch.int64, 63) if inputs.dtype == torch.float64 else (torch.int32, 31)
        self._read: dict[str, Tensor] = {}  # the last layers' scores that were asked for
        self._scores = RoundScores(self._shapes, self._scores_of)

    def score(self) -> Mapping[str, Tensor]:
        """Scores are made when they are read, by a pass for a few layers."""
        self._scores.close()
        self._read, self._before = {}, self._flow.masks
        self._scores = RoundScores(self._shapes, self._scores_of)
        return self._scores

    @torch.no_grad()
    def keep(self, num_kept: int) -> None:
        num_dropped = self._num_kept - num_kept
        low, num_bits = 0, self._num_bits
        num_below, limit = 0, max(1 << _BIN_BITS, sum(shape.numel() for shape in self._shapes.values()) // 64)
        while num_bits and num_dropped:
            width = max(num_bits - _BIN_BITS, 0)
            counts = self._count(low, num_bits, width)
            below = counts.cumsum(0)
            index = int(torch.searchsorted(below, num_dropped - num_below))
            num_below += int(below[index - 1]) if index else 0
            low, num_bits = low + (index << width), width
            if counts[index] <= limit:
                break
        if num_dropped:
            self._drop(low, num_bits, num_dropped - num_below)
            self._num_kept = num_kept

    def _count(self, low: int, num_bits: int, width: int) -> Tensor:
        """Of the kept scores whose bits are in [low, low + 2^num_bits), how many are in each bin of 2^width."""
        counts = torch.zeros(1 << (num_bits - width), dtype=torch.long)
        num_zero = dict.fromkeys(self._shapes, 0)

        def visit(name: str, start: int, scores: Tensor, kept: Tensor) -> None:
            bits = self._bits(name, torch.where(kept, scores, 0))
            num_pruned = len(kept) - int(kept.sum())
            if self._check is not None:
                num_zero[name] += int((bits == 0).sum()) - num_pruned
            bins = (bits - low) >> width if low else bits >> width
            if num_bits < self._num_bits:
                bins = bins[(bins >= 0) & (bins < len(counts))]
            counts.add_(torch.bincount(bins, minlength=len(counts)))
            if not low:
                counts[0] -= num_pruned  # they were counted as zeros

        self._flow.scan(self._inputs, visit, of_log=self._of_log)
        if self._check is not None:
            self._check(num_zero)
            self._check = None
        return counts

    def _bits(self, name: str, scores: Tensor) -> Tensor:
        """Integers that sort as the scores do. Raises: PruningError for inf, NaN or less than 0."""
        lowest, highest = (value.item() for value in scores.aminmax())
        if not math.isfinite(highest) or math.isnan(lowest):
            raise PruningError(OVERFLOW)
        if lowest < 0:
            raise PruningError(f"{NEGATIVE}: {name}")
        return (scores + 0.0).view(self._integers)  # 0.0 makes +0 of -0

    def _drop(self, low: int, num_bits: int, num_dropped: int) -> None:
        """Drop what is below the interval, and of what is in it the `num_dropped` lowest."""
        self._before = {name: mask.clone() for name, mask in self._flow.masks.items()}
        inside: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self._shapes}

        def visit(name: str, start: int, scores: Tensor, kept: Tensor) -> None:
            bits = self._bits(name, torch.where(kept, scores, 0))
            between = kept & (bits >= low) & (bits - low < 1 << num_bits)
            kept &= bits >= low
            positions = between.nonzero().flatten()
            inside[name].append((positions + start, scores[positions]))

        self._flow.scan(self._inputs, visit, of_log=self._of_log)
        parts = {name: [torch.cat(side) for side in zip(*chunks, strict=True)] for name, chunks in inside.items()}
        scores = torch.cat([found for _, found in parts.values()]).numpy()
        threshold = kth_smallest(scores, num_dropped)
        num_ties_dropped = num_dropped - int((scores < threshold).sum())
        dropped = scores < threshold
        dropped[np.flatnonzero(scores == threshold)[:num_ties_dropped]] = True
        by_layer = torch.from_numpy(dropped).split([len(positions) for positions, _ in parts.values()])
        for (name, (positions, _)), chosen in zip(parts.items(), by_layer, strict=True):
            self._flow.masks[name].view(-1)[positions[chosen]] = False

    def _scores_of(self, name: str) -> Tensor:
        if name not in self._read:
            self._read = self._scores_from(name)
        return self._read[name]

    def _scores_from(self, first: str) -> dict[str, Tensor]:
        """Of this layer and those after it, up to an eighth of all weights, by a pass with the last round's masks."""
        names, room = list(self._shapes), sum(shape.numel() for shape in self._shapes.values()) // 8
        found: dict[str, Tensor] = {}
        for name in names[names.index(first) :]:
            room -= self._shapes[name].numel()
            if found and room < 0:
                break
            found[name] = torch.zeros(self._shapes[name].numel(), dtype=self._inputs.dtype)

        def visit(name: str, start: int, scores: Tensor, kept: Tensor) -> None:
            if name in found:
                found[name][start : start + len(scores)] = torch.where(kept, scores, 0)

        now, self._flow.masks = self._flow.masks, self._before
        try:
            self._flow.scan(self._inputs, visit, of_log=self._of_log)
        finally:
            self._flow.masks = now
        return {name: scores.view(self._shapes[name]) for name, scores in found.items()}

    def masks(self) -> Masks:
        return Masks(self._flow.masks)

    def end(self) -> None:
        """Nothing is left to check."""
