"""The full network's state dict as bytes. Zeros are written where weights are pruned, or found there on reading."""

from __future__ import annotations

from importlib import import_module
from io import BytesIO

import torch

from prunelab.experiment.errors import RunError
from prunelab.export.found import Found
from prunelab.export.packed import pack


def ticket(found: Found) -> bytes:
    """A plain state dict: `net.load_state_dict(torch.load(FILE), strict=True)` takes it."""
    buffer = BytesIO()
    torch.save(found.weights, buffer)
    return buffer.getvalue()


def safetensors(found: Found) -> bytes:
    """`net.load_state_dict(safetensors.torch.load_file(FILE), strict=True)` takes it; the file's metadata are strings.

    Raises: RunError for a kind of tensor that the format does not have.
    """
    # tied parameters are in it twice: the format has no tensors that share their memory
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in found.weights.items()}
    about = {"format": "pt"} | {name: str(value) for name, value in found.about.items()}
    try:
        content: bytes = import_module("safetensors.torch").save(tensors, metadata=about)
    except (KeyError, ValueError) as error:
        raise RunError(f"safetensors cannot hold these weights: {error}") from error
    return content


def packed(found: Found) -> bytes:
    """`prunelab.export.load_packed(FILE)` gives state dict and masks, bit for bit."""
    return pack(found.weights, found.masks, found.about)
