"""The weights that are still kept, as many rounds with one global threshold need them: the scores of nothing else are
computed or compared. Both classes select as `keep_highest` does: an exact number, and of equal scores the earlier
positions go first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from prunelab.pruning.errors import PruningError
from prunelab.pruning.selection import lowest

OVERFLOW = "scores are inf or NaN: the weights are, or the signal overflows in this network"
NEGATIVE = "SynFlow scores are negative: a part of the network subtracts"
_REBUILD_AT = 0.75  # share of a list that is still kept: a list built anew costs as much as several rounds with it


class SurvivorLists:
    """On the CPU: the positions and values of kept weights in lists, which shrink as weights are dropped.

    values: the factor of each weight's gradient in its score. kept: bool tensor. Both flat, layer after layer, of which
    `sizes` are the lengths. Between rebuilds, dropped entries have the value NaN: no comparison holds for it. The first
    lists, which need no positions, are those of all weights, and later ones lie in their memory.
    """

    def __init__(self, values: Tensor, kept: Tensor, sizes: Sequence[int], num_kept: int) -> None:
        self.num_kept = num_kept
        self._kept, self._sizes = kept.clone(), list(sizes)
        self._begins = torch.tensor([0, *self._sizes]).cumsum(0)[:-1]  # of the layers in the flat tensors
        self._lengths = self._sizes  # of the layers in the lists
        self._positions: Tensor | None = None  # in the layer, as 32 bits: half the bytes, and index_select takes them
        self._values = values.clone() if num_kept == len(values) else values.masked_fill(~kept, torch.nan)
        self._scores = torch.empty_like(self._values)

    def kept_by_layer(self) -> list[Tensor]:
        return list(self._kept.split(self._sizes))

    def score(self, gradients: Iterable[Tensor], divisor: float = 1.0) -> None:
        """Gradient times value, over `divisor`. Raises: PruningError for inf, NaN or less than 0."""
        self._rebuild()
        start = 0
        for gradient, length in zip(gradients, self._lengths, strict=True):
            part = slice(start, start + length)
            factor = gradient.reshape(-1)
            if self._positions is not None:
                factor = torch.index_select(factor, 0, self._positions[part], out=self._scores[part])
            torch.mul(factor, self._values[part], out=self._scores[part])
            start += length
        if divisor != 1:
            self._scores.div_(divisor)
        scores = self._scores.numpy()
        # read as integers, numbers from 0 to the largest are those below inf; NaN is not, of dropped weights or others
        integers = np.dtype(f"u{scores.itemsize}")
        if np.count_nonzero(scores.view(integers) < scores.dtype.type(np.inf).view(integers)) == self.num_kept:
            return
        if np.count_nonzero(np.isfinite(scores)) != self.num_kept:
            raise PruningError(OVERFLOW)
        if np.count_nonzero(scores >= 0) != self.num_kept:  # of -0.0 this holds
            raise PruningError(NEGATIVE)

    def _rebuild(self) -> None:
        if self.num_kept > _REBUILD_AT * len(self._values):
            return
        known, values = self._positions, self._values  # moved up in their memory: pages never used before take long
        positions = torch.empty(self.num_kept, dtype=torch.int32) if known is None else known
        begin, end, lengths = 0, 0, []
        for length in self._lengths:
            part = slice(begin, begin + length)
            left = torch.from_numpy(np.flatnonzero(~np.isnan(values[part].numpy())))
            place = slice(end, end + len(left))
            positions[place] = left if known is None else known[part].index_select(0, left)
            values[place] = values[part].index_select(0, left)
            begin, end = part.stop, place.stop
            lengths.append(len(left))
        self._positions, self._values, self._lengths = positions[:end], values[:end], lengths
        self._scores = self._scores[:end]

    def _begins_of(self, entries: Tensor) -> Tensor:
        """Where the layer of each of the ascending `entries` begins in the flat tensors."""
        ends = torch.searchsorted(entries, torch.tensor(self._lengths).cumsum(0))
        return self._begins.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))

    def drop(self, num_kept: int, weights: Tensor, margin: float = 0.0) -> bool:
        """Drop all but the `num_kept` highest of the last scores, and set their `weights` (flat) to 0.

        margin: if positive, False comes back and nothing is dropped where a score that would stay exceeds one that
        would go by so small a share of it, or not at all. 0 is sure to be 0 where no score is so small that it has lost
        digits: where some are, and zeros go, False comes back, too.
        """
        num_dropped = self.num_kept - num_kept
        if num_dropped == 0:
            return True
        scores = self._scores.numpy()
        dropped, threshold = lowest(scores, num_dropped)
        if margin:
            near = max(threshold * (1 + margin), float(torch.finfo(self._scores.dtype).tiny))
            num_sure = num_dropped if threshold > 0 else np.count_nonzero(scores == 0)
            if np.count_nonzero(scores <= near) != num_sure:
                return False
        num_ties_kept = len(dropped) - num_dropped
        if num_ties_kept:
            ties = np.flatnonzero(scores[dropped] == threshold)
            dropped = np.delete(dropped, ties[-num_ties_kept:])
        entries = torch.from_numpy(dropped)
        self._values[entries] = torch.nan
        self.num_kept = num_kept
        if self._positions is not None:
            entries = self._positions[entries] + self._begins_of(entries)
        self._kept[entries] = False
        weights[entries] = 0
        return True

    def scores(self, layer: int) -> Tensor:
        """The last scores of a layer, flat, 0 where no weight was kept when they were made."""
        scores = torch.nan_to_num(self._scores.split(self._lengths)[layer], nan=0)
        if self._positions is None:
            return scores
        positions = self._positions.split(self._lengths)[layer].long()
        return scores.new_zeros(self._sizes[layer]).index_copy_(0, positions, scores)

    def check(self) -> None:
        """Nothing is left to check: `score` has done it."""


class FixedSurvivors:
    """On other devices: tensors of one size for all rounds, and nothing that the host would have to wait for.

    A weight that is dropped has the score -inf, below all others. Arguments and methods as those of `SurvivorLists`.
    """

    def __init__(self, values: Tensor, kept: Tensor, sizes: Sequence[int], num_kept: int) -> None:
        self.num_kept = num_kept
        self._values, self._kept, self._sizes = values.clone(), kept, list(sizes)
        self._scores = torch.empty_like(values)
        self._is_valid = torch.ones((), dtype=torch.bool, device=values.device)

    def kept_by_layer(self) -> list[Tensor]:
        return list(self._kept.split(self._sizes))

    def score(self, gradients: Iterable[Tensor], divisor: float = 1.0) -> None:
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=self._scores)
        self._scores.mul_(self._values)
        if divisor != 1:
            self._scores.div_(divisor)
        self._is_valid = self._is_valid & (((self._scores >= 0) & self._scores.isfinite()) | ~self._kept).all()
        self._scores.masked_fill_(~self._kept, -torch.inf)

    def drop(self, num_kept: int, weights: Tensor, margin: float = 0.0) -> bool:
        """Raises: NotImplementedError for a margin: to tell what is close, the host would have to wait."""
        if margin:
            raise NotImplementedError("scores on a device are not compared with a margin")
        if num_kept == self.num_kept:
            return True
        threshold = self._scores.kthvalue(len(self._scores) - num_kept).values
        above, ties = self._scores > threshold, self._scores == threshold
        rank_from_the_end = ties.flip(0).cumsum(0).flip(0)
        self._kept = above | (ties & (rank_from_the_end <= num_kept - above.sum()))
        self.num_kept = num_kept
        weights.masked_fill_(~self._kept, 0)
        return True

    def scores(self, layer: int) -> Tensor:
        scores = self._scores.split(self._sizes)[layer]
        return scores.masked_fill(scores.isneginf(), 0)

    def check(self) -> None:
        """At the end, as it waits for the device. Raises: PruningError if scores were inf, NaN or negative."""
        if not bool(self._is_valid):
            raise PruningError(f"{OVERFLOW}; or {NEGATIVE}")
