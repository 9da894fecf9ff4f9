from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WritePicture = Callable[..., Path]


@pytest.fixture
def write_picture() -> WritePicture:
    """Write a picture of one colour; its red value tells pictures apart."""

    def write(path: Path, red: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        pixels[..., 0] = red
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path, write_picture: WritePicture) -> Path:
    """An image folder of 2 classes, 6 + 2 pictures of 6 x 4 pixels each; dogs have red values from 100."""
    root = tmp_path / "pets"
    for part, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                red = 100 * label + 10 * index + (5 if part == "test" else 0)
                write_picture(root / part / name / f"{index}.png", red)
    return root
