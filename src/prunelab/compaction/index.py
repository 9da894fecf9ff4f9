"""Which channels of a network are left, and the surgery that leaves only them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from prunelab.compaction.errors import CompactionError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@runtime_checkable
class ChannelPad(Protocol):
    """A module without parameters that puts `before` zero channels before its input's and `after` behind them."""

    before: int
    after: int


def is_channel_pad(module: nn.Module) -> TypeGuard[ChannelPad]:
    """Attributes called `before` and `after` may be anything, layers too."""
    if not isinstance(module, ChannelPad) or any(True for _ in module.children()) or module.state_dict():
        return False
    return all(isinstance(count, int) and count >= 0 for count in (module.before, module.after))


@dataclass(frozen=True)
class ChannelIndex:
    """The map between a full network and its compact one.

    kept: name of a parameter or buffer -> for each of its first dimensions the indices that are left, ascending, None
    for all of them. shapes: name -> the full shape. pads: path of a `ChannelPad` -> its counts (before, after).
    Names that are not listed are the same in both networks.
    """

    kept: dict[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pads: dict[str, tuple[int, int]] = field(default_factory=dict)

    def small_shape(self, name: str) -> tuple[int, ...]:
        kept = self.kept[name]
        sizes = [size if part is None else len(part) for size, part in zip(self.shapes[name], kept, strict=False)]
        return (*sizes, *self.shapes[name][len(kept) :])

    def select(self, name: str, full: Tensor) -> Tensor:
        """The part of a full tensor that is left, as a tensor of its own in the same memory format."""
        if name not in self.kept:
            return full
        if tuple(full.shape) != self.shapes[name]:
            raise CompactionError(f"{name} has shape {tuple(full.shape)}, the index is for {self.shapes[name]}")
        small = full.detach()
        for dimension, part in enumerate(self.kept[name]):
            if part is not None:
                small = small.index_select(dimension, part.to(small.device))
        is_last = full.dim() == 4 and not full.is_contiguous()
        return small.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)

    def take(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """name -> full tensor to name -> its part that is left. Raises: CompactionError for another shape."""
        return {name: self.select(name, tensor) for name, tensor in full.items()}

    def put(self, small: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`full` with the values of `small` in their places: the inverse of `take`, the rest stays as it is.

        Raises: CompactionError for names or shapes that do not go with this index.
        """
        if small.keys() != full.keys():
            raise CompactionError(f"only in one of the two: {', '.join(sorted(small.keys() ^ full.keys()))}")
        placed = {}
        for name, values in small.items():
            if name not in self.kept:
                placed[name] = copy.deepcopy(values)
                continue
            if tuple(values.shape) != self.small_shape(name) or tuple(full[name].shape) != self.shapes[name]:
                found = f"{tuple(values.shape)} and {tuple(full[name].shape)}"
                raise CompactionError(
                    f"{name} has shapes {found}, the index is for {self.small_shape(name)} and {self.shapes[name]}"
                )
            placed[name] = full[name].detach().to(values, copy=True)  # a training may have changed its dtype
            placed[name][self._places(name, values.device)] = values.detach()
        return placed

    def _places(self, name: str, device: torch.device) -> tuple[Any, ...]:
        kept = self.kept[name]
        places: list[Any] = []
        for dimension, part in enumerate(kept):
            indices = torch.arange(self.shapes[name][dimension]) if part is None else part
            places.append(indices.to(device).view(-1, *[1] * (len(kept) - 1 - dimension)))
        return tuple(places)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, which torch reads with `weights_only=True`."""
        return {
            "kept": {name: list(parts) for name, parts in self.kept.items()},
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "pads": {path: list(counts) for path, counts in self.pads.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChannelIndex:
        """What `state_dict` gave. Raises: CompactionError for anything else."""
        try:
            return cls(
                {name: tuple(parts) for name, parts in state["kept"].items()},
                {name: tuple(shape) for name, shape in state["shapes"].items()},
                {path: (counts[0], counts[1]) for path, counts in state["pads"].items()},
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise CompactionError("no index of channels") from error

    def save(self, path: str | Path | IO[bytes]) -> None:
        torch.save(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | Path) -> ChannelIndex:
        """Raises: CompactionError if the file is damaged or no index; FileNotFoundError if there is none."""
        try:
            return cls.from_state(torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise
        except Exception as error:  # bytes that are no index may make the reader raise anything
            raise CompactionError(
                f"{path} holds no index of channels or is damaged ({type(error).__name__})"
            ) from error


def shrink(net: nn.Module, index: ChannelIndex) -> None:
    """Leave only the channels in `index`, in place: modules and names stay, their parameters are replaced by smaller
    ones. A network that is that small already stays as it is.

    Do it before an optimizer, DDP or weight averaging takes hold of the parameters.
    Raises: CompactionError, with the network unchanged, if it is neither the full nor the small one.
    """
    tensors = all_tensors(net)
    if missing := sorted(index.kept.keys() - tensors.keys()):
        raise CompactionError(f"the network has no {', '.join(missing)}")
    found = {name: tuple(tensors[name].shape) for name in index.kept}
    if all(found[name] == index.small_shape(name) for name in found):
        return
    for name, shape in found.items():
        if shape != index.shapes[name]:
            raise CompactionError(f"{name} has shape {shape}, the index is for {index.shapes[name]}")
    for name in index.kept:
        path, _, leaf = name.rpartition(".")
        module, tensor = net.get_submodule(path), tensors[name]
        small: Tensor = index.select(name, tensor)
        if isinstance(tensor, nn.Parameter):
            small = nn.Parameter(small, requires_grad=tensor.requires_grad)
        setattr(module, leaf, small)
    for name in index.kept:
        _resize(net.get_submodule(name.rpartition(".")[0]), index.shapes[name][0])
    for path, (before, after) in index.pads.items():
        pad: Any = net.get_submodule(path)
        pad.before, pad.after = before, after


def all_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names: a module that is part of two others has two."""
    return {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}


def _resize(module: Any, full_rows: int) -> None:
    """The numbers that a module holds beside its tensors. Grouped convolutions lose whole groups."""
    if isinstance(module, CONVOLUTIONS):
        rows, columns = module.weight.shape[:2]
        if module.groups > 1 and module.out_channels != rows:
            module.groups = module.groups * rows // full_rows
        module.out_channels, module.in_channels = rows, columns * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, BATCH_NORMS):
        module.num_features = len(next(t for t in (module.weight, module.running_mean) if t is not None))


def count_channels(net: nn.Module) -> int:
    """Output rows of all convolutions and linear layers."""
    modules = (module for module in net.modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear)))
    return sum(module.weight.shape[0] for module in modules)
