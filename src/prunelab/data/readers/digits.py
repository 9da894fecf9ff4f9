"""The digits that ship with scikit-learn: no download, read in milliseconds."""

from __future__ import annotations

import torch

from prunelab.data.arrays import ImageArrays

TEST_PICTURES_PER_CLASS = 36


def read_digits() -> ImageArrays:
    """1797 grey pictures (1, 8, 8) of handwritten digits, grey levels 0..16 stretched to 0..255.

    The last 36 pictures of each digit are the test set (360), the other 1437 the training set: deterministic,
    class-balanced, and, as the file is ordered by writer, mostly by hands that training has not seen.
    Reference: Alpaydin, Kaynak 1998, "Optical recognition of handwritten digits", UCI repository (test part).
    """
    from sklearn.datasets import load_digits  # a second of imports that no other data set needs

    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = (pixels * (255 / 16)).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        is_test[(labels == digit).nonzero().flatten()[-TEST_PICTURES_PER_CLASS:]] = True
    return ImageArrays(images[~is_test], labels[~is_test], images[is_test], labels[is_test], tuple("0123456789"))
