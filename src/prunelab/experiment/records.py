"""A level's record: one flat JSON file with everything that a table or a plot asks for."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prunelab import __version__
from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import write_atomically

_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy")


def versions() -> dict[str, str]:
    """Versions of what computes the result."""
    found = {"prunelab": __version__, "python": platform.python_version(), "platform": sys.platform}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def write_record(path: Path, record: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(record, indent=2) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """The record, or None if the level is not finished. Raises: RunError if the file is damaged."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({error}): delete it to finish the run from its checkpoint") from error
    if not isinstance(record, dict):
        raise RunError(f"{path} is no record of a run: delete it to finish the run from its checkpoint")
    return record
