"""From a list of picture files to `ImageArrays`: decoded once, in parallel, and kept in one cache file."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from prunelab.data.arrays import ImageArrays
from prunelab.data.errors import DataError
from prunelab.data.readers.downloads import one_line

CACHE_VERSION = 1  # raise it when decoding changes
CHUNK = 100  # files per task


@dataclass(frozen=True)
class Picture:
    """A file below the root of its data set, with what tells whether it has changed since."""

    path: str
    label: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class PictureFiles:
    """The files of a labelled data set below `root`."""

    root: Path
    train: Sequence[Picture]
    test: Sequence[Picture]
    class_names: tuple[str, ...]

    def digest(self, image_size: int | None) -> str:
        """Changes with any file's name, class, size or time of change, and with `image_size`."""
        state = (CACHE_VERSION, image_size, self.class_names, list(self.train), list(self.test))
        return hashlib.sha256(repr(state).encode()).hexdigest()


def pictures_in(root: Path, folder: str, label: int) -> list[Picture]:
    """The files directly in `root/folder` whose name ends like a picture's, sorted by name."""
    endings = Image.registered_extensions()
    found = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in endings and not entry.name.startswith("."):
                stat = entry.stat()
                found.append(Picture(f"{folder}/{entry.name}", label, stat.st_size, stat.st_mtime_ns))
    return sorted(found, key=lambda picture: picture.path)


def read_pictures(files: PictureFiles, image_size: int | None = None) -> ImageArrays:
    """The pictures as RGB, from the cache `<root>.decoded.pt` beside the folder if no file has changed since.

    image_size: side of the square that every picture is scaled and centre-cropped to; None: all have one.
    Raises DataError for a picture that cannot be read or that has another size than the rest.
    A cache that cannot be written is warned about; the pictures are then decoded in every process and run.
    """
    cache = Path(f"{os.path.abspath(files.root)}.decoded.pt")
    digest = files.digest(image_size)
    arrays = _load_cache(cache, digest)
    if arrays is None:
        arrays = _decode(files, image_size)
        _save_cache(cache, digest, arrays)
    return arrays


def _load_cache(cache: Path, digest: str) -> ImageArrays | None:
    try:
        content = torch.load(cache, weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError):  # absent or damaged
        return None
    if content.pop("digest") != digest:
        return None
    return ImageArrays(**content)


def _save_cache(cache: Path, digest: str, arrays: ImageArrays) -> None:
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save({"digest": digest, **vars(arrays)}, file)
        os.replace(part, cache)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's answer to a full disk
        warnings.warn(
            f"the decoded pictures cannot be kept in {cache} ({one_line(error)}): they will be decoded again",
            stacklevel=2,
        )
        part.unlink(missing_ok=True)


def _decode(files: PictureFiles, image_size: int | None) -> ImageArrays:
    paths = [files.root / picture.path for picture in (*files.train, *files.test)]
    labels = torch.tensor([picture.label for picture in (*files.train, *files.test)])
    first = _decode_picture(paths[0], image_size)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(paths))):
            pixels = _decode_picture(paths[index], image_size)
            if pixels.shape != first.shape:
                raise DataError(
                    f"pictures of different sizes, as {_size(first)} of {paths[0]} and {_size(pixels)} of "
                    f"{paths[index]}: give image_size to scale them to one"
                )
            images[index] = pixels

    starts = range(0, len(paths), CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
        decoded = pool.map(decode_chunk, starts)
        for _ in track(decoded, f"decoding {files.root.name}", total=len(starts), console=Console(stderr=True)):
            pass
    train, test = torch.from_numpy(images).split([len(files.train), len(files.test)])
    train_labels, test_labels = labels.split([len(files.train), len(files.test)])
    return ImageArrays(train, train_labels, test, test_labels, files.class_names)


def _decode_picture(path: Path, image_size: int | None) -> np.ndarray:
    """uint8 (3, H, W)"""
    try:
        picture = Image.open(BytesIO(path.read_bytes())).convert("RGB")
    except Exception as error:  # Pillow's decoders raise errors of a dozen types
        raise DataError(f"cannot read the picture {path} ({one_line(error)}): replace or delete it") from error
    if image_size is not None:
        picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(picture).transpose(2, 0, 1)


def _size(pixels: np.ndarray) -> str:
    _, height, width = pixels.shape
    return f"{width}x{height}"
