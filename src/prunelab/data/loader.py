"""Batches of an in-memory data set in an order that can be repeated, resumed and shared out over ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunelab.data.augment import Normalisation, RandomCropFlip, cut_windows
from prunelab.data.errors import DataError
from prunelab.data.seeds import derive_seed

BLOCK_PIXELS = 1 << 19  # at most, that a CPU makes at a time: so many stay in its caches


class TensorLoader:
    """Iterate over `images[indices]` in batches of (float32 images, int64 labels) on `device`.

    The order is a pure function of (seed, epoch); `seed=None` keeps the order of `indices`.
    `batch_size` is global: of every batch, rank r of w takes the samples r, r + w, ... The last batch holds
    what is left; if fewer than w samples, they join the batch before, so that every rank makes the same
    number of steps. No sample is dropped or seen twice. Where w does not divide the last batch, its shards
    differ by one sample: `loss_factor` makes the mean over ranks a mean over samples.
    `allow_empty`: for those who can take a batch without samples, the last batch stays what it is on one
    rank, however few its samples, and some ranks get none of them.

    Lightning calls `sampler.set_epoch` before each epoch, and saves and restores `state_dict`: training goes
    on after the last batch that was handed out, inside an epoch too.
    """

    batch_sampler = None  # Lightning asks every loader that has a `sampler` for this one too

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        normalise: Normalisation,
        *,
        batch_size: int,
        seed: int | None = None,
        augment: RandomCropFlip | None = None,
        device: torch.device | None = None,
        rank: int = 0,
        world_size: int = 1,
        allow_empty: bool = False,
    ) -> None:
        if batch_size % world_size:
            raise DataError(
                f"batch_size {batch_size} counts all devices and cannot be shared by {world_size} of them: "
                f"use a multiple of {world_size}"
            )
        if len(indices) < world_size:
            raise DataError(f"{len(indices)} pictures cannot be shared by {world_size} devices: use fewer devices")
        self.images, self.labels, self.indices = images, labels, indices
        self.batch_size, self.seed = batch_size, seed
        self.device = device or images.device
        self.normalise, self.augment = normalise.to(self.device), augment
        self.rank, self.world_size, self.allow_empty = rank, world_size, allow_empty
        self.epoch = 0
        self.num_batches_done = 0  # in this epoch
        self._resuming = False

    @property
    def sampler(self) -> TensorLoader:
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.num_batches_done, self._resuming = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "num_batches_done": self.num_batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.num_batches_done = state["epoch"], state["num_batches_done"]
        self._resuming = True

    def __len__(self) -> int:
        whole, left = divmod(len(self.indices), self.batch_size)
        return max(1, whole + (left >= (1 if self.allow_empty else self.world_size)))

    def loss_factor(self, index: int) -> float:
        """What this rank multiplies its mean loss over batch `index` of an epoch by.

        own samples * ranks / samples of all ranks: the mean over ranks, which DDP takes of gradients, is then the
        mean over the samples of all of them. 1 wherever the ranks have equally many.
        """
        start, stop = self._span(index)
        num_own = len(range(start + self.rank, stop, self.world_size))
        return num_own * self.world_size / (stop - start)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator, as Lightning makes the iterator before set_epoch: nothing may be fixed until `next`
        first = self.num_batches_done if self._resuming else 0
        self._resuming = False
        order = self._order().to(self.images.device)
        windows = None
        if self.augment is not None:  # drawn for the whole epoch: for each batch it would take a tenth of the time
            windows = self.augment.starts(order.to(self.device), self.images.shape, self.epoch)
        for index in range(first, len(self)):
            self.num_batches_done = index + 1
            start, stop = self._span(index)
            own = slice(start + self.rank, stop, self.world_size)
            yield self._batch(order[own], None if windows is None else windows[own])

    def _span(self, index: int) -> tuple[int, int]:
        """Which samples of an epoch's order batch `index` holds, over all ranks."""
        start = index * self.batch_size
        return start, len(self.indices) if index == len(self) - 1 else start + self.batch_size

    def _order(self) -> Tensor:
        if self.seed is None:
            return self.indices
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        return self.indices[torch.randperm(len(self.indices), generator=generator)]

    def _batch(self, samples: Tensor, windows: Tensor | None) -> tuple[Tensor, Tensor]:
        batch = torch.empty(len(samples), *self.images.shape[1:], device=self.device)
        num = max(1, -(-batch.numel() // BLOCK_PIXELS)) if self.device.type == "cpu" else 1
        starts = [None] * num if windows is None else windows.tensor_split(num)
        for own, own_starts, part in zip(samples.tensor_split(num), starts, batch.tensor_split(num), strict=True):
            # on a CPU index_select copies whole pictures: many times faster than images[samples]
            images = self.images.index_select(0, own).to(self.device)
            if self.augment is not None and own_starts is not None:
                images = cut_windows(images, self.augment.padding, own_starts)
            self.normalise(images, out=part)
        return batch, self.labels[samples].to(self.device)
