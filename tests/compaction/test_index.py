from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from prunelab.compaction import ChannelIndex, CompactionError, compact, count_channels, expand, shrink
from prunelab.compaction.index import is_channel_pad
from prunelab.models import resnet20
from prunelab.models.resnet import PadShortcut
from prunelab.pruning import Masks

from .exactness import ragged_masks


def pair(shortcut: str = "identity") -> tuple[nn.Module, nn.Module, ChannelIndex, Masks]:
    """A masked network, its compact one, the index and the masks."""
    net = resnet20(in_channels=1, width=0.5, shortcut=shortcut)
    masks = ragged_masks(net, 0.2, 0, 0.5)
    masks.apply_to(net)
    found = compact(net, masks, torch.zeros(1, 1, 8, 8))
    return net, found.net, found.index, masks


def test_shrink_needs_the_index_alone_and_may_be_done_twice() -> None:
    net, small, index, _ = pair()
    for _ in range(2):
        shrink(net, index)
        assert count_channels(net) == count_channels(small)
        assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in net.state_dict().items())
    assert str(net) == str(small)  # widths, groups and pads too
    net.eval()(torch.randn(2, 1, 8, 8))


def test_take_and_put_are_inverse() -> None:
    net, small, index, _ = pair()
    full = net.state_dict()
    taken = index.take(full)
    assert all(torch.equal(taken[name], tensor) for name, tensor in small.state_dict().items())
    assert all(torch.equal(tensor, full[name]) for name, tensor in index.put(taken, full).items())
    ones = {name: torch.full_like(tensor, 7) for name, tensor in taken.items()}
    placed = index.put(ones, full)
    for name, tensor in placed.items():
        assert int((tensor == 7).sum()) >= ones[name].numel()
        assert torch.equal(index.select(name, tensor), ones[name])


def test_saved_and_loaded(tmp_path: Path) -> None:
    _, _, index, _ = pair()
    index.save(tmp_path / "index.pt")
    loaded = ChannelIndex.load(tmp_path / "index.pt")
    assert (loaded.shapes, loaded.pads, loaded.kept.keys()) == (index.shapes, index.pads, index.kept.keys())
    assert loaded.pads
    for name, parts in index.kept.items():
        for one, other in zip(parts, loaded.kept[name], strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("damage", ["truncated", "empty", "masks", "list"])
def test_other_files_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    _, _, index, masks = pair()
    path = tmp_path / "index.pt"
    index.save(path)
    if damage in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 100 if damage == "truncated" else 0])
    elif damage == "masks":
        masks.save(path)
    else:
        torch.save([1, 2], path)
    with pytest.raises(CompactionError, match=r"index\.pt"):
        ChannelIndex.load(path)
    with pytest.raises(FileNotFoundError):
        ChannelIndex.load(tmp_path / "none.pt")


def test_other_networks_are_refused_and_stay_as_they_are() -> None:
    net, small, index, _ = pair()
    other = resnet20(in_channels=1, shortcut="identity")
    before = {name: tensor.shape for name, tensor in other.state_dict().items()}
    with pytest.raises(CompactionError, match="the index is for"):
        shrink(other, index)
    assert before == {name: tensor.shape for name, tensor in other.state_dict().items()}
    with pytest.raises(CompactionError, match="has no"):
        shrink(nn.Linear(2, 2), index)
    with pytest.raises(CompactionError, match="the index is for"):
        expand(small, index, other)
    with pytest.raises(CompactionError, match="only in one"):
        index.put({}, net.state_dict())


def test_a_module_under_two_names() -> None:
    """State dicts hold both."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)
            self.again = nn.ModuleList([self.one])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).relu())

    full = Net()
    masks = ragged_masks(full, 0.9, 0, 0.5)
    masks.apply_to(full)
    found = compact(full, masks, torch.zeros(1, 4))
    assert len(found.net.one.weight) < 6
    assert found.net.again[0] is found.net.one
    before = full.state_dict()
    for name, tensor in expand(found.net, found.index, full).state_dict().items():
        assert torch.equal(tensor, before[name])


def test_layers_with_attributes_called_before_and_after_are_no_pads() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.after(self.before(x).relu()).flatten(1)

    net = nn.Sequential(Block())
    masks = ragged_masks(net, 0.9, 0, 0.5)
    assert len(compact(net, masks, torch.zeros(1, 1, 6, 6)).net[0].before.weight) < 6
    assert not is_channel_pad(net[0])
    assert is_channel_pad(PadShortcut(2, 1, 1))
