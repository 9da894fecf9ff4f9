"""From a list of picture files to `ImageArrays`: decoded once, in parallel, and kept in one cache file."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from prunelab.data.arrays import ImageArrays
from prunelab.data.errors import DataError
from prunelab.data.readers.decoder import Decode, decode, decoders, num_cores
from prunelab.data.readers.downloads import one_line

CACHE_VERSION = 1  # raise it when decoding changes
CHUNK = 100  # files per task
WORTH_A_PROCESS = 200  # files that take at least the tenth of a second that a process needs to start


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
            file.flush()
            os.fsync(file.fileno())  # renamed before its content is on the disk, it could survive a power cut empty
        os.replace(part, cache)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's answer to a full disk
        warnings.warn(
            f"the decoded pictures cannot be kept in {cache} ({one_line(error)}): they will be decoded again",
            stacklevel=2,
        )
        part.unlink(missing_ok=True)


def _decode(files: PictureFiles, image_size: int | None) -> ImageArrays:
    pictures = (*files.train, *files.test)
    paths = [os.path.join(files.root, picture.path) for picture in pictures]
    labels = torch.tensor([picture.label for picture in pictures])
    num_processes = min(num_cores(), len(paths) // WORTH_A_PROCESS)
    try:
        with decoders(num_processes) if num_processes > 1 else nullcontext(decode) as decode_files:
            images = _decode_with(decode_files, max(1, num_processes), paths, image_size, files.root.name)
    except (ValueError, ChildProcessError) as error:
        raise DataError(str(error)) from error
    train, test = images.split([len(files.train), len(files.test)])
    train_labels, test_labels = labels.split([len(files.train), len(files.test)])
    return ImageArrays(train, train_labels, test, test_labels, files.class_names)


def _decode_with(decode_files: Decode, num_threads: int, paths: list[str], image_size: int | None, name: str) -> Tensor:
    """uint8 (N, 3, H, W)"""
    (size,), _ = decode_files(paths[:1], image_size)
    width, height = size
    images = np.empty((len(paths), 3, height, width), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        chunk = paths[start : start + CHUNK]
        sizes, pixels = decode_files(chunk, image_size)
        for path, (its_width, its_height) in zip(chunk, sizes, strict=True):
            if (its_width, its_height) != size:
                raise DataError(
                    f"pictures of different sizes, as {width}x{height} of {paths[0]} and {its_width}x{its_height} of "
                    f"{path}: give image_size to scale them to one"
                )
        channels_last = np.frombuffer(pixels, dtype=np.uint8).reshape(len(chunk), height, width, 3)
        images[start : start + CHUNK] = channels_last.transpose(0, 3, 1, 2)

    starts = range(0, len(paths), CHUNK)
    with ThreadPoolExecutor(num_threads) as pool:
        decoded = pool.map(decode_chunk, starts)
        for _ in track(decoded, f"decoding {name}", total=len(starts), console=Console(stderr=True)):
            pass
    return torch.from_numpy(images)
