"""A download with a progress bar and a checksum, and what to tell a user when one fails."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from prunelab.data.errors import DataError


def fetch(name: str, url: str, target: Path, md5: str) -> None:
    """Download `url` under a progress bar; `target` appears only when it is complete and has that MD5 sum."""
    with no_empty_folders(target.parent):
        _fetch(name, url, target, md5)


def _fetch(name: str, url: str, target: Path, md5: str) -> None:
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
            size = int(response.headers.get("Content-Length", 0))
            with wrap_file(response, size, description=name, console=Console(stderr=True)) as source:
                shutil.copyfileobj(source, file, 1 << 20)
        if (found := checksum(part)) != md5:
            raise unavailable(name, url, target, f"what came has MD5 {found} instead of {md5}")
        os.replace(part, target)
    except (OSError, HTTPException) as error:
        raise unavailable(name, url, target, error) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Should the work inside fail, remove the folders it made on the way to `folder` and left empty."""
    made = [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def checksum(file: Path) -> str:
    """MD5 sum of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def unavailable(name: str, tried: str, expected: Path, reason: object) -> DataError:
    """The error that names what was tried, where the files belong, and what runs without them."""
    return DataError(
        f"{name} is not available ({one_line(reason)}): tried {tried}; expected at {expected.absolute()}; "
        "configs/quickstart.yaml runs on data that ships, without a download"
    )


def one_line(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__
