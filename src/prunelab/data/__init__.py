"""Image data sets as Lightning data modules, held in memory and batched there."""

from __future__ import annotations

from prunelab.data.arrays import ImageArrays
from prunelab.data.datasets import (
    cifar10,
    cifar100,
    digits,
    fashion_mnist,
    image_folder,
    mnist,
    tiny_imagenet,
)
from prunelab.data.errors import DataError
from prunelab.data.loader import TensorLoader
from prunelab.data.module import ImageDataModule

__all__ = [
    "DataError",
    "ImageArrays",
    "ImageDataModule",
    "TensorLoader",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "image_folder",
    "mnist",
    "tiny_imagenet",
]
