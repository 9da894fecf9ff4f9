"""SynFlow's rounds in little memory, in passes that hold one layer at a time (`streamed_flow.py`).

Two passes find the threshold of a round: the first counts scores in bins, the second drops what is below the
threshold's bin and collects what is in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.pruning.errors import PruningError
from prunelab.pruning.flow import LastScores
from prunelab.pruning.masks import Masks
from prunelab.pruning.selection import kth_smallest
from prunelab.pruning.streamed_flow import INTEGERS, StreamedFlow
from prunelab.pruning.survivors import NEGATIVE, OVERFLOW

_BIN_BITS = 18  # counts that stay in the cache
Found = tuple[int, np.ndarray, np.ndarray]  # of a part of a layer: its start, positions from there, scores


class StreamedRounds:
    """The state of SynFlow's rounds: a bool tensor of what is kept, a bit per weight of what was kept before, and in a
    pass what a part of a layer needs. Selects as `keep_highest` does. On the CPU only. Of layers that are not made at
    once sums come in another order: scores agree with whole passes but for rounding, which nothing guards against.

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
        self._flow = StreamedFlow(net, kept, inputs.dtype, **flow)
        self._inputs, self._of_log = inputs, of_log
        self._check: Callable[[dict[str, int]], None] | None = check
        self._num_kept = masks.num_kept
        self._num_pruned = {name: kept[name].numel() - number for name, number in masks.layer_num_kept().items()}
        self._shapes = {name: mask.shape for name, mask in kept.items()}
        self._size = sum(shape.numel() for shape in self._shapes.values())
        self._before: dict[str, np.ndarray] | None = None  # bits; None: what is kept now
        self._flow.try_once(inputs)
        # numbers >= 0 sort as their bits do
        self._integers, self._num_bits = INTEGERS[inputs.dtype], 63 if inputs.dtype == torch.float64 else 31
        self._read: dict[str, Tensor] = {}  # the last layers' scores that were asked for
        self._last = LastScores()

    def score(self) -> Mapping[str, Tensor]:
        """Scores are made when they are read, by a pass for a few layers."""
        self._read, self._before = {}, None
        return self._last.give(self._shapes, self._scores_of)

    @torch.no_grad()
    def keep(self, num_kept: int) -> None:
        num_dropped = self._num_kept - num_kept
        low, num_bits = 0, self._num_bits
        num_below, limit = 0, max(1 << _BIN_BITS, self._size // 64)
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
        """Of the kept scores whose bits are in [low, low + 2^num_bits), how many are in each bin of 2^width.

        Raises: PruningError for inf, NaN or less than 0.
        """
        counts = torch.zeros(1 << (num_bits - width), dtype=torch.long)
        num_zero = {name: -number for name, number in self._num_pruned.items()}

        def visit(name: str, start: int, scores: Tensor, kept: Tensor) -> None:
            lowest, highest = (value.item() for value in scores.aminmax())
            if not math.isfinite(highest) or math.isnan(lowest):
                raise PruningError(OVERFLOW)
            if lowest < 0:
                raise PruningError(f"{NEGATIVE}: {name}")
            if self._check is not None:
                num_zero[name] += len(scores) - int(scores.count_nonzero())
            bits = scores.add_(0.0).view(self._integers)  # 0.0 makes +0 of -0
            bins = bits.sub_(low).bitwise_right_shift_(width)
            if num_bits < self._num_bits:
                bins = bins[(bins >= 0) & (bins < len(counts))]
            counts.add_(torch.bincount(bins, minlength=len(counts)))

        self._flow.scan(self._inputs, visit, of_log=self._of_log)
        if low == 0:
            counts[0] -= self._size - self._num_kept  # the pruned ones were counted as zeros
        if self._check is not None:
            self._check(num_zero)
            self._check = None
        return counts

    def _drop(self, low: int, num_bits: int, num_dropped: int) -> None:
        """Drop what is below the interval, and of what is in it the `num_dropped` lowest."""
        masks = {name: mask.view(-1).numpy() for name, mask in self._flow.masks.items()}
        self._before = {name: np.packbits(mask) for name, mask in masks.items()}
        lowest, end = (self._number(bits) for bits in (low, low + (1 << num_bits)))
        inside: dict[str, list[Found]] = {name: [] for name in masks}

        def visit(name: str, start: int, scores: Tensor, kept: Tensor) -> None:
            kept &= scores >= lowest
            positions = np.flatnonzero((kept & (scores < end)).numpy()).astype(np.int32)
            # where all are equal there may be many
            values = scores.numpy()[positions] if num_bits else np.broadcast_to(lowest, len(positions))
            inside[name].append((start, positions, values))

        self._flow.scan(self._inputs, visit, of_log=self._of_log)
        parts = [(masks[name], *found) for name in masks for found in inside[name]]  # in the order of the layers
        threshold = lowest
        if num_bits:
            threshold = kth_smallest(np.concatenate([scores for *_, scores in parts]), num_dropped)
        num_ties = num_dropped - sum(np.count_nonzero(scores < threshold) for *_, scores in parts)
        for mask, start, positions, scores in parts:
            ties = np.flatnonzero(scores == threshold)[:num_ties]
            num_ties -= len(ties)
            mask[start + positions[scores < threshold]] = False
            mask[start + positions[ties]] = False

    def _number(self, bits: int) -> float:
        return torch.tensor(bits, dtype=self._integers).view(self._inputs.dtype).item()

    def _scores_of(self, name: str) -> Tensor:
        if name not in self._read:
            self._read.clear()
            self._read = self._scores_from(name)
        return self._read[name]

    def _scores_from(self, first: str) -> dict[str, Tensor]:
        """Of this layer and those after it, up to an eighth of all weights, by a pass with the last round's masks."""
        names, room = list(self._shapes), self._size // 8
        found: dict[str, Tensor] = {}
        for name in names[names.index(first) :]:
            room -= self._shapes[name].numel()
            if found and room < 0:
                break
            found[name] = torch.empty(self._shapes[name].numel(), dtype=self._inputs.dtype)

        def visit(name: str, start: int, scores: Tensor, kept: Tensor) -> None:
            if name in found:
                found[name][start : start + len(scores)] = scores

        now = self._flow.masks
        self._flow.masks = now if self._before is None else dict(self._unpacked(self._before))
        try:
            self._flow.scan(self._inputs, visit, of_log=self._of_log)
        finally:
            self._flow.masks = now
        return {name: scores.view(self._shapes[name]) for name, scores in found.items()}

    def _unpacked(self, before: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Tensor]]:
        for name, shape in self._shapes.items():
            bits = np.unpackbits(before[name], count=shape.numel())
            yield name, torch.from_numpy(bits).view(torch.bool).view(shape)

    def masks(self) -> Masks:
        return Masks(self._flow.masks)

    def end(self) -> None:
        """Nothing is left to check."""
