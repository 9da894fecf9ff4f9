"""A labelled image data set held in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Training and test pictures as they are stored: nothing cropped, nothing normalised.

    Images are uint8 (N, C, H, W) in 0..255, labels int64 (N,) in 0..len(class_names) - 1.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return sum(tensor.nbytes for tensor in tensors)

    def to(self, device: torch.device) -> ImageArrays:
        """The same pictures on `device`."""
        return ImageArrays(
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
            self.class_names,
        )
