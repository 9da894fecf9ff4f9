"""Masks: which weights of a network are kept. The only form in which prunelab holds a pruning decision."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from prunelab.pruning.errors import PruningError


class Masks(Mapping[str, Tensor]):
    """Parameter name -> bool tensor of the parameter's shape, True = kept. Immutable.

    Names are those of `net.named_parameters()`; a tied parameter appears once, under its first name. Reading an
    entry gives a copy, so nobody can change a mask by accident; pruning returns new Masks.

    Raises: TypeError for anything that is not a bool tensor.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"mask of {name!r} must be a bool tensor, got {kind}")
        self._masks = {name: _held(mask.detach()) for name, mask in masks.items()}
        # not sum(): that makes integers of all of them first, eight bytes each
        self._num_kept = {name: int(mask.count_nonzero()) for name, mask in self._masks.items()}

    @classmethod
    def dense(cls, net: nn.Module, names: Iterable[str]) -> Masks:
        """All weights of the named parameters kept. Takes no memory: a layer is one number."""
        parameters = dict(net.named_parameters())
        return cls({name: torch.ones((), dtype=torch.bool, device=parameters[name].device)
                    .expand(parameters[name].shape) for name in names})  # fmt: skip

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.keys() == other.keys() and all(
            mask.shape == other._masks[name].shape and bool((mask == other._masks[name].to(mask.device)).all())
            for name, mask in self._masks.items()
        )

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, {self.num_kept} of {self.num_weights} weights kept)"

    @property
    def num_kept(self) -> int:
        return sum(self._num_kept.values())

    @property
    def num_weights(self) -> int:
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def density(self) -> float:
        """kept / prunable weights, in [0, 1]."""
        return self.num_kept / self.num_weights

    def layer_num_kept(self) -> dict[str, int]:
        return dict(self._num_kept)

    def layer_densities(self) -> dict[str, float]:
        return {name: self._num_kept[name] / mask.numel() for name, mask in self._masks.items()}

    def digest(self) -> str:
        """SHA-256 over names, shapes and bits, as hex: equal on every device, rank and machine for equal masks."""
        digest = hashlib.sha256()
        for name in sorted(self._masks):
            mask = self._masks[name]
            digest.update(f"{name}{tuple(mask.shape)}".encode())
            digest.update(mask.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()

    def is_subset_of(self, other: Masks) -> bool:
        """True if every weight kept here is kept in `other`; both must have the same names."""
        if self.keys() != other.keys():
            raise ValueError(f"masks of different parameters: {sorted(self.keys() ^ other.keys())}")
        return not any(bool((mask & ~other._masks[name].to(mask.device)).any()) for name, mask in self._masks.items())

    def to(self, device: torch.device | str) -> Masks:
        return Masks({name: mask.to(device) for name, mask in self._masks.items()})

    @torch.no_grad()
    def apply_to(self, net: nn.Module, frozen: Mapping[str, Tensor] | None = None) -> None:
        """Set the pruned weights of `net` to exactly 0, in place; parameter objects stay the same.

        frozen: name -> tensor of the weight's shape with values that pruned weights hold instead of 0.
        Masks and frozen values are full tensors: for a parameter that is sharded (a DTensor) each rank takes its part.
        Raises: PruningError if `net` or `frozen` lacks a parameter or has it in another shape; nothing is changed then.
        """
        parameters = dict(net.named_parameters())
        self._check_fits(parameters, "")
        if frozen is not None:
            self._check_fits(frozen, " the frozen values")
        for name, mask in self._masks.items():
            weight = parameters[name]
            pruned = placed_like(~mask, weight)
            if frozen is None:
                # masked_fill_, not mul_: 0 * NaN is NaN and -1 * 0 is -0.0
                weight.masked_fill_(pruned, 0)
            else:
                weight.copy_(torch.where(pruned, placed_like(frozen[name].to(weight.dtype), weight), weight))

    def _check_fits(self, tensors: Mapping[str, Tensor], what: str) -> None:
        for name, mask in self._masks.items():
            if name not in tensors or tensors[name].shape != mask.shape:
                found = f"it has shape {tuple(tensors[name].shape)}" if name in tensors else "it is missing"
                raise PruningError(f"the mask of {name} with shape {tuple(mask.shape)} does not fit{what}: {found}")

    def save(self, path: str | Path | IO[bytes]) -> None:
        """Write a plain dict of bool tensors, readable with `torch.load` alone."""
        torch.save({name: mask.cpu().contiguous() for name, mask in self._masks.items()}, path)

    @classmethod
    def load(cls, path: str | Path) -> Masks:
        """Raises: PruningError if the file is damaged or not what `save` writes; FileNotFoundError if there is none."""
        try:
            return cls(torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise
        except Exception as error:  # bytes that are no masks may make the reader raise anything
            raise PruningError(f"{path} holds no masks or is damaged ({type(error).__name__})") from error


def _held(mask: Tensor) -> Tensor:
    """A copy; of one number that is expanded to a tensor, still one number."""
    if mask.numel() > 1 and not any(mask.stride()):
        return mask[(0,) * mask.dim()].clone().expand(mask.shape)
    return mask.clone()


def placed_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """`tensor` on the device of `weight`, and sharded as it is: then that of the first process, and all have to ask."""
    tensor = tensor.to(weight.device)
    if isinstance(weight, DTensor):
        return distribute_tensor(tensor, weight.device_mesh, weight.placements)
    return tensor
