from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunelab.compaction.overwritten import overwritten


class Two(nn.Module):
    def __init__(self, act: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.act, self.conv, self.relu = act, nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def read_later(net: Two, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.relu(y) + y


def view_read_later(net: Two, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = y.flatten(1)
    z.add_(1)
    return y


def residual(net: Two, x: Tensor) -> Tensor:
    y = net.conv(x)
    y += x
    return net.relu(y)


def out_read_later(net: Two, x: Tensor) -> Tensor:
    y = net.conv(x)
    torch.add(x, 1, out=y)
    return y


@pytest.mark.parametrize(
    ("act", "names"),
    [
        (lambda net, x: net.relu(net.conv(x)), set()),
        (residual, set()),
        (lambda net, x: F.relu(net.conv(x)) + x, set()),
        (read_later, {"conv", "relu"}),
        (view_read_later, {"conv", "flatten", "add_"}),
        (out_read_later, {"conv", "add"}),
    ],
)
def test_names_what_others_still_read(act: Callable[[Two, Tensor], Tensor], names: set[str]) -> None:
    net = Two(act)
    found = {node.name for node in overwritten(fx.Tracer().trace(net), dict(net.named_modules()))}
    assert found - {"output"} == names
