"""A sparse state dict in few bytes: where the kept weights are, and their values.

A file is MAGIC, the header's length (uint64, little-endian), the header (JSON, compressed by zlib), the payload, and
the SHA-256 of all that. The header's `tensors` lists, in the state dict's order: name, dtype, shape, `mask` (None: it
has none; else how its positions are written), `num_kept`, `mask_bytes`, `value_bytes`. The payload is, for each of
them, its mask and then its values, in the byte order of the header's `byteorder`. A mask is written in the shortest of
these ways:

all      no bytes: every weight is kept
bits     one bit a weight, the highest bit of a byte first
gaps8    one byte a kept weight: how many pruned ones precede it since the last kept one; 255: go on by 255 and read on
gaps16   the same with two bytes, little-endian, and 65535

The values are those of the kept weights; of all weights where a pruned one holds anything but 0 (`value_bytes` tells).
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import write_atomically
from prunelab.pruning import Masks

MAGIC = b"prunelab packed 1\n"
_LENGTH, _CHECKSUM = 8, hashlib.sha256().digest_size
_GAPS: dict[str, np.dtype[Any]] = {"gaps8": np.dtype("<u1"), "gaps16": np.dtype("<u2")}


class PackedError(RunError):
    """Bytes that are no whole packed file; the message goes on after the file's name."""


def save_packed(
    path: str | Path, state: Mapping[str, Tensor], masks: Masks, about: Mapping[str, Any] | None = None
) -> None:
    """Write `state` and `masks` so that `load_packed` gives them back bit for bit.

    about: plain values that travel with them in the header. A mask goes with the tensor of its name.
    Raises: ValueError for a mask that fits no tensor of `state`.
    """
    write_atomically(Path(path), pack(state, masks, about or {}))


def load_packed(path: str | Path) -> tuple[dict[str, Tensor], Masks]:
    """State dict (zeros in their places, on the CPU) and masks of a file that `save_packed` wrote.

    Raises: RunError that names the file if it is missing, damaged (PackedError), or of another kind.
    """
    state, masks, _ = read_packed(path)
    return state, masks


def read_packed(path: str | Path) -> tuple[dict[str, Tensor], Masks, dict[str, Any]]:
    """What `load_packed` gives, and what the file says about it. Raises: as that."""
    try:
        return unpack(Path(path).read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except PackedError as error:
        raise PackedError(f"{path} {error}") from error


def pack(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """The bytes of a packed file. Raises: ValueError for a mask that fits no tensor of `state`."""
    for name, mask in masks.items():
        if name not in state or state[name].shape != mask.shape:
            raise ValueError(f"the mask of {name!r} with shape {tuple(mask.shape)} fits no tensor of the state dict")
    entries, parts = [], []
    for name, tensor in state.items():
        values = _bytes_of(tensor)
        entry: dict[str, Any] = {"name": name, "dtype": _name_of(tensor.dtype), "shape": list(tensor.shape)}
        positions = b""
        entry |= {"mask": None, "num_kept": tensor.numel()}
        if name in masks:
            kept = masks[name].cpu().numpy().reshape(-1)
            entry["mask"], positions = _shortest(kept)
            entry["num_kept"] = int(kept.sum())
            if not values[~kept].view(np.uint8).any():  # a pruned weight may hold -0.0, or what `tickets.mask_0` says
                values = values[kept]
        content = values.tobytes()
        entries.append(entry | {"mask_bytes": len(positions), "value_bytes": len(content)})
        parts += [positions, content]
    text = json.dumps({"byteorder": sys.byteorder, "about": dict(about), "tensors": entries})
    header = zlib.compress(text.encode(), 9)
    whole = b"".join([MAGIC, len(header).to_bytes(_LENGTH, "little"), header, *parts])
    return whole + hashlib.sha256(whole).digest()


def unpack(content: bytes) -> tuple[dict[str, Tensor], Masks, dict[str, Any]]:
    """State dict, masks, and what is said about them, of the bytes of a packed file.

    Raises: PackedError if they are damaged or something else.
    """
    if not content.startswith(MAGIC):
        raise PackedError("is damaged or no packed file: it begins with something else")
    body = memoryview(content)[:-_CHECKSUM]
    if hashlib.sha256(body).digest() != content[-_CHECKSUM:]:
        raise PackedError("is damaged: its checksum is of other bytes")
    start = len(MAGIC) + _LENGTH
    end = start + int.from_bytes(body[len(MAGIC) : start], "little")
    try:
        header = json.loads(zlib.decompress(body[start:end]))
        if header["byteorder"] != sys.byteorder:
            raise PackedError(f"was written on a machine of the other byte order ({header['byteorder']})")
        tensors = {name: (tensor, mask) for name, tensor, mask in _read(header["tensors"], body[end:])}
        masks = Masks({name: mask for name, (_, mask) in tensors.items() if mask is not None})
        return {name: tensor for name, (tensor, _) in tensors.items()}, masks, dict(header["about"])
    except PackedError:
        raise
    except Exception as error:  # a header that somebody else wrote may make its reader raise anything
        raise PackedError(f"holds no packed state dict ({type(error).__name__})") from error


def _read(entries: list[dict[str, Any]], payload: memoryview) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Of each tensor its name, values and mask. Raises: PackedError if the payload is not what the entries say."""
    place = 0
    for entry in entries:
        name, shape = entry["name"], tuple(entry["shape"])
        mask_end = place + entry["mask_bytes"]
        end = mask_end + entry["value_bytes"]
        positions, content = payload[place:mask_end], payload[mask_end:end]
        dtype = getattr(torch, entry["dtype"])
        size, width = math.prod(shape), torch.empty((), dtype=dtype).element_size()
        kept = None
        if entry["mask"] is not None:
            kept = _mask_from(entry["mask"], positions, size)
            if int(kept.sum()) != entry["num_kept"]:
                raise PackedError(f"is inconsistent: {name} keeps another number of weights than it says")
        values = np.frombuffer(content, np.dtype(f"V{width}"))
        if len(values) != size:
            if kept is None or len(values) != entry["num_kept"]:
                raise PackedError(f"is inconsistent: {name} has values for {len(values)} weights")
            placed = np.zeros(size, values.dtype)
            placed[kept] = values
            values = placed
        tensor = _tensor_of(values, dtype, shape)
        yield name, tensor, None if kept is None else torch.from_numpy(kept).view(shape)
        place = end
    if place != len(payload):
        raise PackedError("is inconsistent: its payload has another length than it says")


def _shortest(kept: NDArray[np.bool_]) -> tuple[str, bytes]:
    """The shortest way to write where `kept` (N,) is True, and its bytes."""
    if kept.all():
        return "all", b""
    ways = {"bits": np.packbits(kept).tobytes()}
    if kept.sum() < len(ways["bits"]):  # each takes a byte at least
        gaps = np.diff(np.flatnonzero(kept), prepend=-1) - 1
        ways |= {way: _gap_codes(gaps, dtype).tobytes() for way, dtype in _GAPS.items()}
    return min(ways.items(), key=lambda way: len(way[1]))


def _gap_codes(gaps: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    limit = 256**dtype.itemsize - 1
    jumps, rest = np.divmod(gaps, limit)
    codes = np.full(len(gaps) + int(jumps.sum()), limit, dtype)
    codes[np.cumsum(jumps + 1) - 1] = rest
    return codes


def _mask_from(way: str, positions: memoryview, size: int) -> NDArray[np.bool_]:
    if way == "all":
        return np.ones(size, np.bool_)
    if way == "bits":
        if len(positions) != -(-size // 8):
            raise PackedError("is inconsistent: a mask has another length than its tensor")
        return np.unpackbits(np.frombuffer(positions, np.uint8), count=size).astype(np.bool_)
    dtype = _GAPS[way]
    codes = np.frombuffer(positions, dtype)
    limit = 256**dtype.itemsize - 1
    ends = codes != limit
    places = (np.cumsum(codes.astype(np.int64) + ends) - 1)[ends]
    kept = np.zeros(size, np.bool_)
    kept[places] = True
    return kept


def _bytes_of(tensor: Tensor) -> NDArray[Any]:
    """The elements (N,) as they are in memory, whatever numpy makes of their type."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().view(np.dtype(f"V{tensor.element_size()}"))


def _tensor_of(values: NDArray[Any], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    own = values.copy().view(np.uint8)  # a buffer of bytes is read-only
    return torch.from_numpy(own).view(dtype).reshape(shape)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
