from __future__ import annotations

import torch

from prunelab.data.readers.digits import read_digits


def test_sizes_and_classes() -> None:
    arrays = read_digits()
    assert arrays.train_images.shape == (1437, 1, 8, 8)
    assert arrays.test_images.shape == (360, 1, 8, 8)
    assert torch.bincount(arrays.test_labels).tolist() == [36] * 10
    assert torch.bincount(arrays.train_labels).tolist() == [142, 146, 141, 147, 145, 146, 145, 143, 138, 144]
    assert arrays.class_names == tuple("0123456789")


def test_grey_levels_use_the_whole_range() -> None:
    images = read_digits().train_images
    assert images.dtype == torch.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert len(images.unique()) == 17


def test_is_deterministic() -> None:
    first, second = read_digits(), read_digits()
    assert torch.equal(first.test_images, second.test_images)
    assert torch.equal(first.train_labels, second.train_labels)
