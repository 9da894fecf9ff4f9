"""The tickets that a run has left: for plain torch networks, and for other runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.compaction import ChannelIndex, CompactionError
from prunelab.experiment.errors import RunError
from prunelab.experiment.records import read_record
from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.pruning import Masks, PruningError
from prunelab.pruning.transfer import misfits
from prunelab.training.compacting import KEY, in_full
from prunelab.training.network import under_prefix


def load_ticket(run_dir: str | Path, net: nn.Module, level: int | None = None) -> Masks:
    """Load a ticket into `net`: the pruned weights as they were before the level's first step; returns its masks.

    net: any module with the parameters and buffers of the run's network. level: None means the last finished one.
    Masks are on the CPU, by the names of `net.named_parameters()`; 0 is what pruned weights hold, unless the run's
    `tickets.mask_0` says otherwise. Without prunelab the same is `net.load_state_dict(torch.load("ticket.pt"))`.
    Raises: RunError if there is no such level, it is not finished, its files are missing or damaged, or the network is
    another one; nothing is changed then.
    """
    found = finished_level(RunDir(Path(run_dir)), level)
    masks, weights = masks_of(found), start_weights(found)
    if wrong := misfits(weights, net.state_dict()):
        raise RunError(f"{found.ticket} does not fit the network: {wrong}")
    net.load_state_dict(weights, strict=True)
    return masks


def finished_level(run_dir: RunDir, index: int | None = None) -> LevelDir:
    """The level at `index`, None for the last one that is finished. Raises: RunError if it is not there or finished."""
    levels = {level.index: level for level in run_dir.levels()}
    finished = [number for number, level in levels.items() if read_record(level.record) is not None]
    if not levels:
        raise RunError(f"{run_dir.path} is no run directory: it has no levels")
    if index is not None and index not in levels:
        raise RunError(f"{run_dir.path} has no level {index}: there are {', '.join(map(str, levels))}")
    if not finished or (index is not None and index not in finished):
        unfinished = levels[max(levels) if index is None else index]
        raise RunError(f"{unfinished.path} is not finished: the command that began the run goes on with it")
    return levels[finished[-1] if index is None else index]


def find_masks(path: str) -> Path:
    """The file of masks that `path` means: itself, or that of a level, or of the last level of a finished run.

    Raises: RunError if there is none.
    """
    given = Path(path)
    own = next((file for file in (given, LevelDir(given).masks) if file.is_file()), None)
    if own is not None:
        return own
    if not (levels := RunDir(given).levels()):
        raise RunError(f"pruning.masks_from: {path} is no file of masks and no run")
    record = read_record(levels[-1].record)
    if record is None or levels[-1].index + 1 < record["num_levels"]:
        raise RunError(f"pruning.masks_from: {path} is not finished; one of its level directories may be given")
    return levels[-1].masks


def find_weights(path: str) -> Path:
    """The file of weights that `path` means: itself, or the ticket of a level, or the rewind point of a run.

    Raises: RunError for a directory with neither.
    """
    given = Path(path)
    if not given.is_dir():
        return given
    first = RunDir(given).level(0)
    candidates = [LevelDir(given).ticket, first.rewind_checkpoint]
    if first.channel_index.is_file() and (_read(first.rewind_checkpoint).get("global_step") == 0):
        candidates[1] = first.ticket  # the same point, of the full network
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise RunError(f"pruning.weights_from: {path} has no rewind point and no ticket: give a run, a level or a file")
    return found


def masks_of(level: LevelDir) -> Masks:
    """Raises: RunError if the file is missing or damaged, or not the one that the level's record is about."""
    try:
        masks = Masks.load(level.masks)
    except FileNotFoundError:
        raise RunError(f"{level.masks} is missing") from None
    except PruningError as error:
        raise RunError(str(error)) from error
    digest = masks.digest()
    if (read_record(level.record) or {}).get("masks_digest", digest) != digest:
        raise RunError(f"{level.masks} holds other masks than those of the level's record")
    return masks


def start_weights(level: LevelDir) -> dict[str, Tensor]:
    """State dict of the level's network before its first step, pruned. Raises: RunError if missing or damaged."""
    return _read(level.ticket)


def trained_weights(run_dir: RunDir, level: LevelDir) -> dict[str, Tensor]:
    """State dict of the level's full network after its last step, bit for bit; where a compact one was trained, its
    weights in their places among those that the full one started with.

    Raises: RunError if the checkpoint is missing, damaged, or not the one that the level's record is about.
    """
    checkpoint, record = _read(level.last_checkpoint), read_record(level.record) or {}
    if "state_dict" not in checkpoint or checkpoint.get("global_step") != record.get("steps"):
        raise RunError(
            f"{level.last_checkpoint} is not the end of the finished training: the same command goes on with it"
        )
    if KEY in checkpoint:
        checkpoint = in_full(checkpoint, start_weights(level))
    net = run_dir.read_config().get("pruning", {}).get("net", "net")
    return under_prefix(checkpoint["state_dict"], net)


def index_of(level: LevelDir) -> ChannelIndex | None:
    """The channels that the level's network was left with; None if it was not compacted.

    Raises: RunError if the file is damaged.
    """
    try:
        return ChannelIndex.load(level.channel_index)
    except FileNotFoundError:
        return None
    except CompactionError as error:
        raise RunError(str(error)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except Exception as error:  # reading noise fails in any way: OSError, RuntimeError, IndexError, ...
        raise RunError(f"{path} is damaged ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it holds no tensors by name")
    return content
