"""Tiny networks for the tests of pruning; weights come from a seed of their own, whatever ran before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from prunelab.pruning import Masks, prunable_names

Matrix = Sequence[Sequence[float]]


def chain(*matrices: Matrix, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers without biases and with these weights, an activation between each two; float64."""
    layers: list[nn.Module] = []
    for matrix in matrices:
        weight = torch.tensor(matrix, dtype=torch.float64)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data.copy_(weight)
        layers += [activation(), layer]
    return nn.Sequential(*layers[1:])


def two_by_two() -> nn.Sequential:
    """2 inputs, 2 hidden units, 1 output; by hand: R = 9.5 on ones."""
    return chain([[1, -2], [3, 0.5]], [[2, -1]])


def three_by_three() -> nn.Sequential:
    """3 inputs, 3 hidden units, 1 output; by hand: R = 72 on ones."""
    return chain([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[3, 2, 1]])


def mlp(*widths: int, seed: int = 0, bias: bool = True, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Fully connected; layers are called 0, 2, 4, ...; float64, Kaiming-normal."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [activation(), nn.Linear(n_in, n_out, bias=bias)]
    return seeded(nn.Sequential(*layers[1:]), seed)


def vgg_like(seed: int = 0, in_channels: int = 2) -> nn.Sequential:
    """conv BN ReLU maxpool conv BN ReLU avgpool linear, biases everywhere; 0, 4 and 9 have weights; float64."""
    return seeded(
        nn.Sequential(
            *(nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(5, 3)),
        ),
        seed,
    )


class Block(nn.Module):
    """relu(branch(x) + shortcut(x)), as residual networks have them."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(branch + self.shortcut(x))


class Residual(nn.Module):
    """stem, a block with an identity shortcut, one with a convolution as shortcut, pool, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Block(3, 3), Block(3, 4))
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def residual(seed: int = 0) -> nn.Module:
    return seeded(Residual(), seed)


def with_dropout(seed: int = 0) -> nn.Sequential:
    """Batch norm with running statistics that are not neutral, dropout twice; takes (n, 2, 6, 6); float64."""
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.5)),
        *(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Softsign(), nn.Dropout(0.5), nn.Linear(6, 3)),
    )
    seeded(net, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
        else:
            assert name.endswith("num_batches_tracked")
    return net


def seeded(net: nn.Module, seed: int) -> nn.Module:
    """Matrices and kernels ~ N(0, 2 / fan_in), vectors ~ U(.5, 1.5); float64."""
    generator = torch.Generator().manual_seed(seed)
    net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
            else:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return net


def without_shifts(net: nn.Module) -> nn.Module:
    """Biases, batch norm shifts and running means 0, in place."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
    return net


def dense(net: nn.Module) -> Masks:
    return Masks.dense(net, prunable_names(net))


def random_masks(net: nn.Module, density: float = 0.5, seed: int = 0) -> Masks:
    """Every weight is kept with this probability."""
    generator = torch.Generator().manual_seed(seed)
    return Masks({name: torch.rand(mask.shape, generator=generator) < density for name, mask in dense(net).items()})


def samples(*shape: int, num_classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal inputs (float64) and labels; shape[0] is the number of samples."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(shape[0]) % num_classes


class Untouchable:
    """Scoring batches that nobody may read."""

    def __iter__(self) -> None:
        raise AssertionError("the batches were read")
