"""What a level has left to export: weights, masks, and the network that they make."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunelab import __version__
from prunelab.compaction import ChannelIndex, compact, shrink
from prunelab.experiment.errors import RunError
from prunelab.experiment.records import read_record
from prunelab.experiment.run_dir import RunDir
from prunelab.experiment.tickets import finished_level, index_of, masks_of, start_weights, trained_weights
from prunelab.pruning import Masks
from prunelab.pruning.transfer import misfits

When = Literal["start", "trained"]


@dataclass(frozen=True)
class Found:
    """weights: state dict of the full network; masks: which of them are kept; index: of the channels that were left
    while it trained, None if all were; when: before the level's first step or after its last one."""

    level: int
    when: When
    weights: dict[str, Tensor]
    masks: Masks
    index: ChannelIndex | None
    record: dict[str, Any]

    @property
    def dense_bytes(self) -> int:
        """Of all values of the full network, without any file's own additions."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.weights.values())

    @property
    def about(self) -> dict[str, Any]:
        """What an exported file says about itself."""
        return {
            "prunelab": __version__,
            "criterion": self.record.get("criterion"),
            "level": self.level,
            "weights": self.when,
            "density": self.masks.density,
            "num_kept": self.masks.num_kept,
            "num_prunable": self.masks.num_weights,
            "masks_digest": self.masks.digest(),
        }

    @property
    def computed(self) -> Masks:
        """The masks, and what else is not 0: with `tickets.mask_0` a pruned weight may hold another value."""
        return Masks({name: mask | (self.weights[name] != 0) for name, mask in self.masks.items()})


def find(run_dir: RunDir, index: int | None, when: When) -> Found:
    """What level `index` of a run has left, None for its last finished one.

    Raises: RunError if there is no such level, it is not finished, or a file of it is missing or damaged.
    """
    level = finished_level(run_dir, index)
    weights = start_weights(level) if when == "start" else trained_weights(run_dir, level)
    if other := next((name for name, value in weights.items() if not isinstance(value, Tensor)), None):
        raise RunError(f"the weights of {level.path} cannot be exported: {other} is no tensor")
    record, masks, channels = read_record(level.record) or {}, masks_of(level), index_of(level)
    left = masks.num_weights if channels is None else Masks(channels.take(dict(masks))).num_weights
    if record.get("compact_weights") not in (None, left):
        raise RunError(f"{level.channel_index} is not that of the level's record")
    return Found(level.index, when, weights, masks, channels, record)


def with_weights(net: nn.Module, found: Found) -> nn.Module:
    """`net`, the run's network as its config builds it, with the weights that were found, in their precision.

    Raises: RunError if it is another network.
    """
    if wrong := misfits(found.weights, net.state_dict()):
        raise RunError(f"the weights do not fit the network of the run's config: {wrong}")
    floats = [tensor.dtype for tensor in found.weights.values() if tensor.is_floating_point()]
    net.to(floats[0] if floats else torch.float32).load_state_dict(found.weights, strict=True)
    return net.eval().requires_grad_(False)


def compacted(net: nn.Module, found: Found, example_input: Tensor) -> nn.Module:
    """The small network that computes what `net`, with the weights that were found, computes.

    With the channels that it trained with, or, if it trained masked, those that are found now.
    Raises: CompactionError if the network cannot be compacted, or not by the level's index.
    """
    if found.index is None:
        return compact(net, found.computed, example_input).net.eval().requires_grad_(False)
    small = copy.deepcopy(net)
    shrink(small, found.index)
    return small
