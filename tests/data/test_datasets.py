from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import prunelab.data as data

BUILDERS = ("cifar10", "cifar100", "digits", "fashion_mnist", "image_folder", "mnist", "tiny_imagenet")


@pytest.mark.parametrize("name", BUILDERS)
def test_every_builder_has_the_common_arguments(name: str) -> None:
    signature = inspect.signature(getattr(data, name))
    assert signature.return_annotation == "ImageDataModule"  # what the command line resolves a class path by
    common = {"batch_size", "val_size", "augment", "padding", "seed", "split_seed", "device"}
    assert common <= signature.parameters.keys()
    assert signature.parameters["batch_size"].default == 128


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "image_folder"])
def test_arguments_reach_the_module(name: str) -> None:
    changed = {"batch_size": 7, "val_size": 3, "padding": 2, "seed": 5, "split_seed": 9}
    module = getattr(data, name)(augment="crop", device="cpu", **changed)
    assert changed.items() <= vars(module).items()
    assert (module.augment, module.device) == ("crop", "cpu")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "tiny_imagenet"])
def test_data_dir_and_download_reach_the_reader(name: str, tmp_path: Path) -> None:
    module = getattr(data, name)(data_dir=str(tmp_path), download=False)
    with pytest.raises(data.DataError, match=f"download is false; expected at {tmp_path}"):
        module.setup()


def test_image_folder(folder: Path) -> None:
    module = data.image_folder(str(folder), image_size=5, val_size=4)
    module.setup()
    assert module.image_shape == (3, 5, 5)
    assert (module.num_classes, module.class_names) == (2, ("cat", "dog"))
    assert (len(module.train_indices), len(module.val_indices)) == (8, 4)


def test_image_folder_validates_on_a_tenth_by_default(folder: Path) -> None:
    module = data.image_folder(str(folder))
    module.setup()
    assert len(module.val_indices) == 1


def test_digits() -> None:
    module = data.digits()
    module.setup()
    assert module.image_shape == (1, 8, 8)
    assert module.num_classes == 10
    assert (len(module.train_indices), len(module.val_indices)) == (1237, 200)
