from __future__ import annotations

import torch

from prunelab.data.arrays import ImageArrays


def test_num_bytes_counts_pictures_and_labels() -> None:
    arrays = ImageArrays(
        torch.zeros(10, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(10, dtype=torch.int64),
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.int64),
        ("a",),
    )
    assert arrays.num_bytes == 12 * 48 + 12 * 8


def test_to_keeps_everything() -> None:
    arrays = ImageArrays(*(torch.tensor([i]) for i in range(4)), ("a", "b"))
    moved = arrays.to(torch.device("cpu"))
    assert moved.class_names == ("a", "b")
    tensors = (moved.train_images, moved.train_labels, moved.test_images, moved.test_labels)
    assert [int(tensor) for tensor in tensors] == [0, 1, 2, 3]
