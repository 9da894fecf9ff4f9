"""State dicts as bytes of three formats: the same tensors from each."""

from __future__ import annotations

from io import BytesIO

import pytest
import safetensors.torch
import torch
from torch import nn

from prunelab.experiment.errors import RunError
from prunelab.export.found import Found
from prunelab.export.packed import unpack
from prunelab.export.state_dicts import packed, ticket
from prunelab.export.state_dicts import safetensors as as_safetensors
from prunelab.pruning import Masks


class Tied(nn.Module):
    """Two names for one weight, a counter, and a weight that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.conv = nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(4)


READERS = {
    ticket: lambda content: torch.load(BytesIO(content), weights_only=True),
    as_safetensors: safetensors.torch.load,
    packed: lambda content: unpack(content)[0],
}


def found_of(net: nn.Module) -> Found:
    mask = torch.eye(4) > 0
    masks = Masks({"first.weight": mask})
    masks.apply_to(net)
    return Found(0, "trained", dict(net.state_dict()), masks, None, {"criterion": "snip"})


@pytest.mark.parametrize("write", READERS)
def test_a_strict_load_brings_every_tensor_back(write) -> None:
    net, other = Tied(), Tied()
    content = write(found_of(net))
    other.load_state_dict(READERS[write](content), strict=True)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())
    assert torch.count_nonzero(other.first.weight) == 4


def test_a_type_that_safetensors_do_not_have_is_one_line() -> None:
    net = Tied()
    net.register_buffer("strange", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(RunError, match="safetensors cannot hold these weights: "):
        as_safetensors(found_of(net))
