"""CIFAR and MNIST files, which torchvision downloads, verifies and parses."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

from prunelab.data.arrays import ImageArrays
from prunelab.data.readers.downloads import no_empty_folders, unavailable


def read_cifar10(data_dir: str | Path = "data", download: bool = True) -> ImageArrays:
    """50,000 + 10,000 colour pictures (3, 32, 32) of 10 classes. Reference: Krizhevsky 2009."""
    return _read(CIFAR10, data_dir, download, CIFAR10.base_folder, CIFAR10.url)


def read_cifar100(data_dir: str | Path = "data", download: bool = True) -> ImageArrays:
    """50,000 + 10,000 colour pictures (3, 32, 32) of 100 classes. Reference: Krizhevsky 2009."""
    return _read(CIFAR100, data_dir, download, CIFAR100.base_folder, CIFAR100.url)


def read_mnist(data_dir: str | Path = "data", download: bool = True) -> ImageArrays:
    """60,000 + 10,000 grey pictures (1, 28, 28) of handwritten digits. Reference: LeCun et al. 1998."""
    return _read(MNIST, data_dir, download, "MNIST/raw", " and ".join(MNIST.mirrors))


def read_fashion_mnist(data_dir: str | Path = "data", download: bool = True) -> ImageArrays:
    """60,000 + 10,000 grey pictures (1, 28, 28) of 10 kinds of clothes. Reference: Xiao et al. 2017."""
    return _read(FashionMNIST, data_dir, download, "FashionMNIST/raw", " and ".join(FashionMNIST.mirrors))


def _read(dataset: Any, data_dir: str | Path, download: bool, folder: str, url: str) -> ImageArrays:
    try:
        with no_empty_folders(Path(data_dir, folder)):
            train, test = (dataset(data_dir, train=is_train, download=download) for is_train in (True, False))
    except (OSError, RuntimeError, ValueError, AssertionError, HTTPException) as error:  # or a damaged file
        tried = url if download else "no download, as download is false"
        raise unavailable(dataset.__name__, tried, Path(data_dir, folder), error) from error
    return ImageArrays(
        _channels_first(train.data),
        torch.as_tensor(train.targets),
        _channels_first(test.data),
        torch.as_tensor(test.targets),
        tuple(train.classes),
    )


def _channels_first(pixels: Any) -> Tensor:
    """uint8 (N, H, W, C) or (N, H, W) -> (N, C, H, W)"""
    images = torch.as_tensor(pixels)
    return images.permute(0, 3, 1, 2).contiguous() if images.ndim == 4 else images[:, None]
