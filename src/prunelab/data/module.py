"""The data module: split, loaders, normalisation and scoring batches for whatever a reader brings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from pytorch_lightning import LightningDataModule
from torch import Tensor

from prunelab.data.arrays import ImageArrays
from prunelab.data.augment import Normalisation, RandomCropFlip
from prunelab.data.errors import DataError
from prunelab.data.loader import TensorLoader
from prunelab.data.split import class_balanced, stratified_split

Augment = Literal["crop_flip", "crop", "none"]
Device = Literal["auto", "cpu"]


class ImageDataModule(LightningDataModule):
    """Train, validation and test loaders over pictures that are held in memory as uint8.

    read: brings the pictures; downloads or decodes them where that is still to do (on one process first).
    batch_size: over all devices together.
    val_size: number of training pictures set apart for validation, stratified by class; None: a tenth of
        them; 0: train on all, without validation. The test pictures serve the test loader only.
    augment, padding: of training pictures (`RandomCropFlip`); validation, test and scoring see them as is.
    seed: of the order, the augmentation and the scoring batches; None: the run's (`--seed_everything`).
    split_seed: of the validation split; apart from `seed`, so that runs with several seeds share their split.
    device: `auto` keeps the pictures on the trainer's GPU if they take at most half of its free memory, else
        in main memory, from where batches go to the GPU as uint8 to be augmented there; `cpu` keeps them in
        main memory always.

    Channels are normalised by mean and standard deviation of the training split (not of validation or test).
    """

    def __init__(
        self,
        read: Callable[[], ImageArrays],
        batch_size: int = 128,
        val_size: int | None = None,
        augment: Augment = "none",
        padding: int = 4,
        seed: int | None = None,
        split_seed: int = 0,
        device: Device = "auto",
    ) -> None:
        super().__init__()
        if batch_size < 1 or padding < 0 or (val_size is not None and val_size < 0):
            raise DataError(f"batch_size {batch_size} has to be >= 1, padding {padding} and val_size {val_size} >= 0")
        self.read = read
        self.batch_size = batch_size
        self.val_size = val_size
        self.augment = augment
        self.padding = padding
        self.seed = seed
        self.split_seed = split_seed
        self.device = device
        self._arrays: ImageArrays | None = None
        self.train_indices: Tensor
        self.val_indices: Tensor
        self.normalise: Normalisation
        self._is_split = self._is_seeded = False
        self.run_seed = 0  # known after setup

    def prepare_data(self) -> None:
        """Read on one process, so that downloads and decoding happen once; the others then find the files."""
        if self._arrays is None:
            self._arrays = self.read()

    def take_over(self, other: ImageDataModule) -> None:
        """Share what `other` has read, split and measured, instead of doing it again: before `setup`.

        For the levels of a run, each of which has a data module of its own. Pictures that are on a GPU stay there.
        Raises DataError if `other` reads or splits other data; its batch size, augmentation and seed may differ.
        """
        if not self.reads_as(other):
            raise DataError("data modules that read or split differently cannot share their pictures")
        self._arrays = other._arrays
        if other._is_split:
            self.train_indices, self.val_indices = other.train_indices, other.val_indices
            self.normalise, self._is_split = other.normalise, True

    def reads_as(self, other: ImageDataModule) -> bool:
        """Whether `other` reads and splits the same data equally, as far as can be seen: closures never do."""
        return self._source() == other._source()

    def _source(self) -> tuple[object, ...]:
        """What decides the pictures and their split, to be compared."""
        read = self.read
        parts = (read.func, read.args, read.keywords) if isinstance(read, partial) else (read,)
        return (*parts, self.val_size, self.split_seed)

    def setup(self, stage: str | None = None) -> None:
        self.prepare_data()
        if not self._is_split:
            self._split()
            self._is_split = True
        if not self._is_seeded:
            self.run_seed = torch.initial_seed() if self.seed is None else self.seed
            self._is_seeded = True
        if self.trainer is not None:  # ranks that were seeded apart must still walk through one order
            self.run_seed = self.trainer.strategy.broadcast(self.run_seed)
        device = self._trainer_device()
        if self.device == "auto" and device.type == "cuda" and fits(self.arrays.num_bytes, device):
            self._arrays = self.arrays.to(device)

    def _split(self) -> None:
        arrays = self.arrays
        val_size = len(arrays.train_labels) // 10 if self.val_size is None else self.val_size
        self.train_indices, self.val_indices = stratified_split(
            arrays.train_labels, val_size, arrays.class_names, self.split_seed
        )
        self.normalise = Normalisation.of(arrays.train_images, self.train_indices)

    @property
    def arrays(self) -> ImageArrays:
        if self._arrays is None:
            raise RuntimeError("call setup() first: the data has not been read yet")
        return self._arrays

    @property
    def num_classes(self) -> int:
        return len(self.arrays.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.arrays.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.arrays.train_images.shape[1:]
        return channels, height, width

    def example_input(self) -> Tensor:
        """Float zeros (1, C, H, W), for shape and dtype."""
        return torch.zeros(1, *self.image_shape)

    def scoring_batches(self, samples_per_class: int = 10, batch_size: int = 256) -> list[tuple[Tensor, Tensor]]:
        """Class-balanced (images, labels) of the training split on the CPU, normalised and un-augmented.

        The same at every call and on every rank: a function of `seed` and the split.
        Raises DataError if a class has fewer pictures.
        """
        arrays, candidates = self.arrays, self.train_indices
        labels = arrays.train_labels.cpu()
        chosen = candidates[class_balanced(labels[candidates], samples_per_class, arrays.class_names, self.run_seed)]
        images = arrays.train_images[chosen.to(arrays.train_images.device)].cpu()
        batches = zip(images.split(batch_size), labels[chosen].split(batch_size), strict=True)
        return [(self.normalise(x), y) for x, y in batches]

    def train_dataloader(self) -> TensorLoader:
        augment = RandomCropFlip(self.padding, self.augment == "crop_flip", self.run_seed)
        keep_order = getattr(self.trainer, "overfit_batches", 0) > 0  # to overfit: the same batches again and again
        return self._loader(
            self.arrays.train_images,
            self.arrays.train_labels,
            self.train_indices,
            seed=None if keep_order else self.run_seed,
            augment=None if self.augment == "none" else augment,
            # with a LightningModule that takes such batches, every number of devices makes the same steps
            allow_empty=getattr(getattr(self.trainer, "lightning_module", None), "takes_empty_batches", False),
        )

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        """No loader at all when `val_size` is 0."""
        if len(self.val_indices) == 0:
            return []
        return self._loader(self.arrays.train_images, self.arrays.train_labels, self.val_indices)

    def test_dataloader(self) -> TensorLoader:
        test_labels = self.arrays.test_labels
        return self._loader(self.arrays.test_images, test_labels, torch.arange(len(test_labels)))

    def _loader(self, images: Tensor, labels: Tensor, indices: Tensor, **options: Any) -> TensorLoader:
        rank, world_size = process_rank()
        return TensorLoader(
            images,
            labels,
            indices,
            self.normalise,
            batch_size=self.batch_size,
            device=self._trainer_device(),
            rank=rank,
            world_size=world_size,
            **options,
        )

    def _trainer_device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device


def fits(num_bytes: int, device: torch.device) -> bool:
    """Whether `num_bytes` are at most half of the free memory of a CUDA device; the rest is the network's."""
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * num_bytes <= free


def process_rank() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) where no process group is up."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
