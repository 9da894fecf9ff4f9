"""Networks made by chance from the operations that compaction knows, and a few that it does not."""

from __future__ import annotations

import random

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunelab.models.resnet import PadShortcut


class _Maker:
    """Adds operations to a graph; `pool`: the tensors so far, as (node, channels, pixels)."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.tensors: list[tuple[fx.Node, int, int]] = [(self.graph.placeholder("x"), 2, 6)]

    def module(self, module: nn.Module, operand: fx.Node) -> fx.Node:
        name = f"m{sum(1 for _ in self.root.children())}"
        self.root.add_module(name, module)
        return self.graph.call_module(name, (operand,))

    def pick(self) -> tuple[fx.Node, int, int]:
        recent = self.tensors[-3:]
        return self.random.choice(recent if self.random.random() < 0.8 else self.tensors)

    def add(self, node: fx.Node, channels: int, pixels: int) -> None:
        self.tensors.append((node, channels, pixels))

    def conv_block(self) -> None:
        node, channels, pixels = self.pick()
        outputs, kernel = self.random.randint(1, 6), self.random.choice([1, 3])
        kind, groups = self.random.random(), 1
        if kind < 0.15:
            groups, outputs = channels, channels * self.random.choice([1, 1, 2])
        elif kind < 0.25 and channels % 2 == 0:
            groups, outputs = 2, 2 * self.random.randint(1, 3)
        bias = self.random.random() < 0.4
        conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
        if bias and self.random.random() < 0.6:
            nn.init.zeros_(conv.bias)
        node = self.module(conv, node)
        if self.random.random() < 0.7:
            affine, tracks = self.random.random() < 0.9, self.random.random() < 0.9
            norm = nn.BatchNorm2d(outputs, affine=affine, track_running_stats=tracks)
            if affine and self.random.random() < 0.4:
                norm.bias.data.copy_(torch.randn(outputs) * (torch.rand(outputs) < 0.5))
            if tracks and self.random.random() < 0.3:
                norm.running_mean.copy_(torch.randn(outputs) * (torch.rand(outputs) < 0.5))
            node = self.module(norm, node)
        if self.random.random() < 0.2:
            node = self.module(nn.MaxPool2d(3, 1, 1), node)
        if self.random.random() < 0.2:  # used twice, before and after
            self.add(node, outputs, pixels)
        if self.random.random() < 0.7:
            kinds = [nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.ReLU, nn.ReLU, nn.PReLU]
            node = self.module(self.random.choice(kinds)(), node)
        self.add(node, outputs, pixels)

    def merge(self) -> None:
        one, channels, pixels = self.pick()
        others = [node for node, c, p in self.tensors if (c, p) == (channels, pixels)]
        function = self.random.choice([torch.add, torch.add, torch.mul, torch.sub])
        node = self.graph.call_function(function, (one, self.random.choice(others)))
        if self.random.random() < 0.6:
            node = self.graph.call_function(F.relu, (node,))
        self.add(node, channels, pixels)

    def concatenate(self) -> None:
        one, channels, pixels = self.pick()
        other, more = self.random.choice([(node, c) for node, c, p in self.tensors if p == pixels])
        if channels + more <= 12:
            self.add(self.graph.call_function(torch.cat, ([one, other], 1)), channels + more, pixels)

    def pad_channels(self) -> None:
        node, channels, pixels = self.pick()
        before, after = self.random.randint(0, 2), self.random.randint(0, 2)
        self.add(self.module(PadShortcut(1, before, after), node), before + channels + after, pixels)

    def gate(self) -> None:
        """x * sigmoid(conv(mean of x)): squeeze and excite."""
        node, channels, pixels = self.pick()
        means = self.graph.call_function(torch.mean, (node, (2, 3), True))
        gates = self.module(nn.Sigmoid(), self.module(nn.Conv2d(channels, channels, 1), means))
        self.add(self.graph.call_function(torch.mul, (node, gates)), channels, pixels)

    def odd(self) -> None:
        """What is pinned: a norm over channels, a shuffle, a shared layer, a broadcast sum."""
        node, channels, pixels = self.pick()
        kind = self.random.choice(["groups", "flip", "shared", "broadcast", "scale", "slice"])
        if kind == "groups":
            node = self.module(nn.GroupNorm(1, channels), node)
        elif kind == "flip":
            node = self.graph.call_function(torch.flip, (node, (1,)))
        elif kind == "shared":
            node = self.module(nn.Conv2d(channels, channels, 1), node)
            node = self.graph.call_module(str(node.target), (self.graph.call_function(F.relu, (node,)),))
        elif kind == "broadcast":
            single = self.module(nn.Conv2d(channels, 1, 1), node)
            node = self.graph.call_function(torch.add, (node, single))
        elif kind == "scale":
            node = self.graph.call_function(torch.mul, (node, 0.5))
        else:
            node = self.graph.call_function(F.pad, (node, (1, 0, 1, 0)))
            pixels += 1
        self.add(node, channels, pixels)

    def finish(self) -> nn.Module:
        node, channels, pixels = self.tensors[-1]
        for other, c, p in self.tensors[1:-1]:  # every tensor is used
            if not other.users and p == pixels:
                node, channels = self.graph.call_function(torch.cat, ([node, other], 1)), channels + c
        if self.random.random() < 0.5:
            node, pixels = self.module(nn.AdaptiveAvgPool2d(1), node), 1
        node = self.graph.call_function(torch.flatten, (node, 1))
        width = channels * pixels**2
        if self.random.random() < 0.5:
            node = self.module(nn.Linear(width, 5), node)
            node, width = self.module(nn.ReLU(), node), 5
        self.graph.output(self.module(nn.Linear(width, 3), node))
        return fx.GraphModule(self.root, self.graph)


def random_net(seed: int) -> nn.Module:
    """2 channels of 6 x 6 pixels to 3 outputs, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maker = _Maker(seed)
        maker.conv_block()
        steps = [maker.conv_block, maker.conv_block, maker.conv_block, maker.merge, maker.merge, maker.concatenate,
                 maker.pad_channels, maker.gate, maker.odd]  # fmt: skip
        for _ in range(maker.random.randint(2, 8)):
            maker.random.choice(steps)()
        return maker.finish().double()


def random_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (4,), generator=generator)
