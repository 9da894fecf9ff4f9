from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST
from torchvision.datasets import mnist as torchvision_mnist

from prunelab.data.arrays import ImageArrays
from prunelab.data.errors import DataError
from prunelab.data.readers import torchvision_sets
from prunelab.data.readers.torchvision_sets import (
    read_cifar10,
    read_cifar100,
    read_fashion_mnist,
    read_mnist,
)


def test_mnist_from_its_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(5 * 28 * 28, dtype=np.uint8).reshape(5, 28, 28)
    for part, count in (("train", 5), ("t10k", 2)):
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels[:count].tobytes())
        labels = bytes(range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    arrays = read_mnist(tmp_path, download=False)
    assert arrays.train_images.dtype == torch.uint8
    assert torch.equal(arrays.train_images, torch.from_numpy(pixels)[:, None])
    assert arrays.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert arrays.test_labels.tolist() == [0, 1]
    assert len(arrays.class_names) == 10


def test_cifar10_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    row = np.concatenate([np.full(1024, value, dtype=np.uint8) for value in (10, 20, 30)])
    lists = {}
    for part in ("data_batch_1", "test_batch"):
        content = pickle.dumps({"data": np.stack([row, row]), "labels": [3, 7]})
        (base / part).write_bytes(content)
        lists[part] = [[part, hashlib.md5(content).hexdigest()]]
    names = pickle.dumps({"label_names": list("abcdefghij")})
    (base / "batches.meta").write_bytes(names)
    meta = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(names).hexdigest()}
    monkeypatch.setattr(CIFAR10, "train_list", lists["data_batch_1"])
    monkeypatch.setattr(CIFAR10, "test_list", lists["test_batch"])
    monkeypatch.setattr(CIFAR10, "meta", meta)
    arrays = read_cifar10(tmp_path, download=False)
    assert arrays.train_images.shape == (2, 3, 32, 32)
    assert arrays.train_images.dtype == torch.uint8
    assert arrays.train_images.is_contiguous()
    assert arrays.train_images[0, :, 0, 0].tolist() == [10, 20, 30]
    assert arrays.test_labels.tolist() == [3, 7]
    assert arrays.class_names == tuple("abcdefghij")


@pytest.mark.parametrize(
    ("read", "folder"),
    [
        (read_cifar10, "cifar-10-batches-py"),
        (read_cifar100, "cifar-100-python"),
        (read_mnist, "MNIST/raw"),
        (read_fashion_mnist, "FashionMNIST/raw"),
    ],
)
def test_without_download_says_where_the_files_belong(
    tmp_path: Path, read: Callable[..., ImageArrays], folder: str
) -> None:
    with pytest.raises(DataError) as info:
        read(tmp_path, download=False)
    message = str(info.value)
    assert str(tmp_path / folder) in message
    assert "download is false" in message
    assert "configs/quickstart.yaml" in message
    assert "\n" not in message


def test_failed_download_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision_mnist, "download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"MNIST is not available .* tried http.* expected at .*/MNIST/raw") as info:
        read_mnist(tmp_path)
    assert all(mirror in str(info.value) for mirror in MNIST.mirrors)


def test_a_damaged_download_is_a_data_error(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(gzip.compress(b"page not found"))
    with pytest.raises(DataError, match="MNIST"):
        read_mnist(tmp_path, download=False)


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_download_leaves_no_folder_of_its_own(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    if exists:
        data_dir.mkdir()

    def offline(root: Path, **_: object) -> None:
        (Path(root) / "MNIST" / "raw").mkdir(parents=True)
        raise OSError("no network")

    monkeypatch.setattr(offline, "mirrors", ["somewhere"], raising=False)
    monkeypatch.setattr(offline, "__name__", "MNIST")
    monkeypatch.setattr(torchvision_sets, "MNIST", offline)
    with pytest.raises(DataError, match="no network"):
        torchvision_sets.read_mnist(data_dir)
    assert list(tmp_path.iterdir()) == ([data_dir] if exists else [])
    assert not exists or list(data_dir.iterdir()) == []
