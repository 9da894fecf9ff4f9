"""One builder per data set, named as the configs name it."""

from __future__ import annotations

from functools import partial

from prunelab.data.module import Augment, Device, ImageDataModule
from prunelab.data.readers.digits import read_digits
from prunelab.data.readers.image_folder import read_image_folder
from prunelab.data.readers.tiny_imagenet import read_tiny_imagenet
from prunelab.data.readers.torchvision_sets import read_cifar10, read_cifar100, read_fashion_mnist, read_mnist


def cifar10(
    batch_size: int = 128,
    val_size: int = 5000,
    augment: Augment = "crop_flip",
    padding: int = 4,
    seed: int | None = None,
    split_seed: int = 0,
    data_dir: str = "data",
    download: bool = True,
    device: Device = "auto",
) -> ImageDataModule:
    """CIFAR-10 below `data_dir`. The other arguments are those of `ImageDataModule`."""
    read = partial(read_cifar10, data_dir, download)
    return ImageDataModule(read, batch_size, val_size, augment, padding, seed, split_seed, device)


def cifar100(
    batch_size: int = 128,
    val_size: int = 5000,
    augment: Augment = "crop_flip",
    padding: int = 4,
    seed: int | None = None,
    split_seed: int = 0,
    data_dir: str = "data",
    download: bool = True,
    device: Device = "auto",
) -> ImageDataModule:
    """CIFAR-100 below `data_dir`. The other arguments are those of `ImageDataModule`."""
    read = partial(read_cifar100, data_dir, download)
    return ImageDataModule(read, batch_size, val_size, augment, padding, seed, split_seed, device)


def mnist(
    batch_size: int = 128,
    val_size: int = 5000,
    augment: Augment = "none",
    padding: int = 4,
    seed: int | None = None,
    split_seed: int = 0,
    data_dir: str = "data",
    download: bool = True,
    device: Device = "auto",
) -> ImageDataModule:
    """MNIST below `data_dir`, not augmented: a mirrored 2 is no 2. Arguments: see `ImageDataModule`."""
    read = partial(read_mnist, data_dir, download)
    return ImageDataModule(read, batch_size, val_size, augment, padding, seed, split_seed, device)


def fashion_mnist(
    batch_size: int = 128,
    val_size: int = 5000,
    augment: Augment = "none",
    padding: int = 4,
    seed: int | None = None,
    split_seed: int = 0,
    data_dir: str = "data",
    download: bool = True,
    device: Device = "auto",
) -> ImageDataModule:
    """Fashion-MNIST below `data_dir`. The other arguments are those of `ImageDataModule`."""
    read = partial(read_fashion_mnist, data_dir, download)
    return ImageDataModule(read, batch_size, val_size, augment, padding, seed, split_seed, device)


def tiny_imagenet(
    batch_size: int = 128,
    val_size: int = 5000,
    augment: Augment = "crop_flip",
    padding: int = 4,
    seed: int | None = None,
    split_seed: int = 0,
    data_dir: str = "data",
    download: bool = True,
    device: Device = "auto",
) -> ImageDataModule:
    """Tiny ImageNet below `data_dir`; its labelled validation folder is the test set.

    The other arguments are those of `ImageDataModule`.
    """
    read = partial(read_tiny_imagenet, data_dir, download)
    return ImageDataModule(read, batch_size, val_size, augment, padding, seed, split_seed, device)


def image_folder(
    root: str,
    image_size: int | None = None,
    batch_size: int = 128,
    val_size: int | None = None,
    augment: Augment = "crop_flip",
    padding: int = 4,
    seed: int | None = None,
    split_seed: int = 0,
    device: Device = "auto",
) -> ImageDataModule:
    """Pictures in `root/train/<class>/*` and `root/test/<class>/*`, as RGB.

    image_size: scale and centre-crop every picture to a square of this side; needed when their sizes differ.
    The other arguments are those of `ImageDataModule`.
    """
    read = partial(read_image_folder, root, image_size)
    return ImageDataModule(read, batch_size, val_size, augment, padding, seed, split_seed, device)


def digits(
    batch_size: int = 128,
    val_size: int = 200,
    augment: Augment = "none",
    padding: int = 1,
    seed: int | None = None,
    split_seed: int = 0,
    device: Device = "auto",
) -> ImageDataModule:
    """scikit-learn's 8 x 8 digits, which ship with it. The arguments are those of `ImageDataModule`."""
    return ImageDataModule(read_digits, batch_size, val_size, augment, padding, seed, split_seed, device)
