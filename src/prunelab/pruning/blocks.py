"""Passes that leave out what is exactly 0: of each layer only the block of rows and columns that hold kept weights.

The rest of a layer's weight is 0, and what it would add to a sum is 0, whatever the network around it: a pass through
blocks gives the same numbers up to the order of additions. Where no term is negative no order loses digits, and
`Uses.rounding` bounds what it can change; `Uses.is_bounded` says where not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from prunelab.pruning.surrogate import CHANNELS, TRANSPOSED, PositiveLinear

# by their names, which functions and methods share: with in-place forms, and `__sub__` and the like
_SUBTRACTIONS = {
    *("sub", "subtract", "rsub", "isub", "neg", "negative", "lerp", "diff", "addcmul", "addcdiv"),
    *("std", "std_mean", "var", "var_mean"),
}
_SUMS = {  # of products, whose terms nothing here counts
    *("matmul", "rmatmul", "imatmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "einsum", "tensordot", "bilinear"),
    *("addmm", "addmv", "addbmm", "baddbmm", "chain_matmul", "linalg_matmul", "linalg_multi_dot", "linalg_vecdot"),
    *("convolution", "conv_tbc", "cumsum", "stft", "istft"),
}
_RESAMPLINGS = {"interpolate", "upsample", "grid_sample"}  # bicubic ones subtract
_UNBOUNDED = _SUBTRACTIONS | _SUMS | _RESAMPLINGS
_FOURIER = "fft_"
ABOUT = {  # what may be asked of a weight without using it
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda")
    ),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.is_floating_point),
}


@dataclass(frozen=True)
class Block:
    """Part of a layer's weight: these rows and columns (None: all), ascending. shape: of the whole; weight: the part,
    (rows, columns, ...)."""

    shape: torch.Size
    weight: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None

    def take(self, whole: Tensor) -> Tensor:
        for dimension, kept in enumerate((self.rows, self.columns)):
            if kept is not None:
                whole = whole.index_select(dimension, kept)
        return whole

    def put(self, part: Tensor, whole: Tensor) -> Tensor:
        """`whole` with the values of `part` in its place."""
        if self.rows is not None and self.columns is not None:
            whole[self.rows.unsqueeze(1), self.columns] = part
        elif self.rows is not None:
            whole.index_copy_(0, self.rows, part)
        elif self.columns is not None:
            whole.index_copy_(1, self.columns, part)
        else:
            whole.copy_(part)
        return whole

    def around(self, kept: Tensor) -> Block:
        """The smallest block within this one that holds all of `kept`, a bool tensor of the part; at least 1 by 1."""
        weight, found = self.weight.detach(), []
        bits = kept.view(torch.uint8)  # of large layers their maxima are found many times faster than any() of bools
        lives = bits.flatten(1).amax(1).bool(), bits.amax(0).flatten().view(kept.shape[1], -1).amax(1).bool()
        for live, before, dimension in zip(lives, (self.rows, self.columns), (0, 1), strict=True):
            live[0] |= not live.any()
            if live.all():
                found.append(before)
                continue
            inside = live.nonzero().flatten()
            weight = weight.index_select(dimension, inside)
            found.append(inside if before is None else before[inside])
        return Block(self.shape, weight, *found)


class BlockPass(PositiveLinear):
    """The positive linear network with blocks in place of whole weights. blocks: by the whole weight's `id`."""

    blocks: dict[int, Block]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.blocks = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        block = self.blocks.get(id(args[1])) if func in CHANNELS and len(args) > 1 else None
        if block is None:
            return super().__torch_function__(func, types, args, kwargs)
        inputs, dimension = args[0], CHANNELS[func]
        if block.columns is not None:
            inputs = inputs.index_select(dimension, block.columns)
        output = super().__torch_function__(func, types, (inputs, block.weight, *args[2:]), kwargs)
        if block.rows is None:
            return output
        sizes = list(output.shape)
        sizes[dimension] = block.shape[0]
        return output.new_zeros(sizes).index_copy(dimension, block.rows, output)


class Uses(TorchFunctionMode):
    """While active, notes what a pass does with each of `weights`, and whether its rounding has a bound.

    positions: how often each weight's numbers are used, places and calls together. is_plain: whether it is the weight
    of linear layers and convolutions, and nothing else reads it. is_grouped: whether of a grouped one.
    is_bounded: whether `rounding` is a bound: False once something subtracts, or has a negative number to work on, or
    adds up products otherwise than as a layer (matrix products, Fourier transforms, resampling).
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self._indices = {id(weight): index for index, weight in enumerate(weights)}
        self.positions = [0] * len(weights)
        self.is_plain = [True] * len(weights)
        self.is_grouped = [False] * len(weights)
        self.is_bounded = True
        self._num_terms = 0

    @property
    def rounding(self) -> float:
        """Bound of the relative difference between two orders of additions, in units of the precision's `eps`: as
        many as terms are added up one after the other, through all layers and whatever is between them, forwards,
        backwards and over positions. Twofold, as each of two scores may differ in both orders; and as much again, for
        windows that overlap and the like."""
        return 4.0 * self._num_terms

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in ABOUT:
            return output
        others: Any = (args, kwargs)
        is_layer = (func in CHANNELS or func in TRANSPOSED) and len(args) > 1 and args[1].dim() > 1
        if is_layer:
            rows, columns, *_ = shape = args[1].shape
            positions = (args[0] if func in TRANSPOSED else output).numel() // rows
            self._num_terms += shape.numel() // rows + shape.numel() // columns + positions
            if func in CHANNELS and (index := self._indices.get(id(args[1]))) is not None:
                others = (args[:1], args[2:], kwargs)
                self.positions[index] += positions
                self.is_grouped[index] |= columns != args[0].shape[CHANNELS[func]]
        values = tree_leaves(others)
        for value in values:
            if id(value) in self._indices:
                self.is_plain[self._indices[id(value)]] = False
        numbers = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
        if numbers:
            name = getattr(func, "__name__", "").strip("_")
            is_known = name not in _UNBOUNDED and not name.startswith(_FOURIER) and "alpha" not in (kwargs or {})
            self.is_bounded &= is_known and not any(bool((value < 0).any()) for value in numbers)
        if numbers and not is_layer and isinstance(output, Tensor):  # means, sums, pools, copies
            sizes = sorted((max(value.numel() for value in numbers), output.numel()))
            self._num_terms += sizes[1] // max(sizes[0], 1)
        return output
