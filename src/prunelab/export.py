"""`python -m prunelab.export RUN_DIR --format ticket --output FILE`: what a run found, in one file without prunelab."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import RunDir, write_atomically
from prunelab.experiment.tickets import finished_level, masks_of, start_weights, trained_weights
from prunelab.pruning import Masks


@dataclass(frozen=True)
class Found:
    """What there is to export. weights: state dict of the network; masks: which of them are kept."""

    weights: dict[str, Tensor]
    masks: Masks


def ticket(found: Found) -> bytes:
    """A plain state dict: `net.load_state_dict(torch.load(FILE), strict=True)` takes it."""
    buffer = BytesIO()
    torch.save(found.weights, buffer)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Found], bytes]] = {"ticket": ticket}


def main(argv: list[str]) -> int:
    """Write the file that `argv` asks for; returns the exit code, 2 for what cannot be read or written."""
    parser = argparse.ArgumentParser(
        prog="python -m prunelab.export",
        description="Write what a run found into one file that opens without prunelab.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the last word that a run printed")
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="ticket: a state dict for net.load_state_dict(torch.load(FILE))",
    )
    parser.add_argument("--output", required=True, metavar="FILE", type=Path)
    parser.add_argument("--level", type=int, help="which level; otherwise the last one that is finished")
    parser.add_argument(
        "--weights",
        choices=("start", "trained"),
        default="start",
        help="as they were before the level's first step, or after its last one",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    arguments = parser.parse_args(argv)
    try:
        _check_free(arguments.output, arguments.force)
        run_dir = RunDir(arguments.run_dir)
        level = finished_level(run_dir, arguments.level)
        weights = start_weights(level) if arguments.weights == "start" else trained_weights(run_dir, level)
        found = Found(weights, masks_of(level))
        _write(arguments.output, FORMATS[arguments.format](found))
    except RunError as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    masks, size = found.masks, arguments.output.stat().st_size
    kept = f"density {masks.density:.6g}, {masks.num_kept:,} of {masks.num_weights:,} weights kept"
    print(f"{arguments.output}: level {level.index}, {arguments.weights}, {kept}, {size:,} bytes")
    return 0


def _check_free(path: Path, force: bool) -> None:
    if path.is_dir():
        raise RunError(f"{path} is a directory: --output takes the file to write")
    if path.exists() and not force:
        raise RunError(f"{path} is there already: --force replaces it")


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
