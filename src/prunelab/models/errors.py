"""What a user can get wrong about a model."""

from __future__ import annotations

import math


class ModelError(ValueError):
    """A model cannot be built as asked; the message is one line that says what to change."""


def require_positive(**values: float) -> None:
    """Raise ModelError for the first keyword whose value is not a positive, finite number."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ModelError(f"{name} is {value}, but has to be a positive number")


def require_image_size(model: str, image_size: int, smallest: int) -> None:
    """Raise ModelError if `image_size` pixels are fewer than the `smallest` that `model` can halve."""
    if image_size < smallest:
        raise ModelError(
            f"{model} needs images of at least {smallest} pixels, got image_size {image_size}: "
            f"use larger images, or a model that takes small ones (resnet20, conv2, mlp)"
        )
