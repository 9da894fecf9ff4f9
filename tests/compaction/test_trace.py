from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunelab.compaction import CompactionError
from prunelab.compaction.trace import shape, traced
from prunelab.models.resnet import PadShortcut


def test_shapes_and_leaves_with_nothing_left_behind() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), PadShortcut(2, 1, 2), nn.Flatten())
    net[1].train()
    net[0].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    nodes = {str(node.target): node for node in traced(net, torch.randn(1, 1, 8, 8)).nodes}
    assert shape(nodes["0"]) == (1, 4, 6, 6)
    assert shape(nodes["2"]) == (1, 7, 3, 3)
    assert shape(nodes["3"]) == (1, 63)
    assert shape(nodes["output"]) == (1, 63)
    assert (net[1].training, net[0].training) == (True, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


class Dropped(nn.Module):
    """Dropout's own switch is no other forward."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(x, 0.5, self.training)
        return nn.functional.dropout(x, p=0.5, training=self.training)


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + (1 if self.training else 0)


def test_training_and_evaluation_are_compared_with_their_arguments() -> None:
    traced(Dropped(), torch.zeros(1, 2))
    with pytest.raises(CompactionError, match="other things in training"):
        traced(Shifted(), torch.zeros(1, 2))


def test_the_reason_is_one_line_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CompactionError, match=r"cannot be run on the example: .*mat1 and mat2") as caught:
        traced(nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 4))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
