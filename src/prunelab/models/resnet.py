"""Residual networks: CIFAR family (ResNet-20 to 1202) and 64-pixel family (ResNet-18, 34, 50, WRN-18).

Every network is a Sequential of stem, stages and head, and every stage a Sequential of blocks, so the outputs
of their elements are the points that each path from image to logits crosses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.errors import ModelError, require_positive
from prunelab.models.initialisation import initialise

Shortcut = Literal["conv", "identity"]


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


class PadShortcut(nn.Module):
    """The parameter-free shortcut (option A): every `stride`-th pixel, zero channels before and after.

    (N, C, H, W) -> (N, before + C + after, ceil(H / stride), ceil(W / stride)).
    The two counts are attributes, so that whoever removes channels has one place to change.
    Reference: He et al. 2016, arXiv 1512.03385, section 3.3.
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, after={self.after}"


def resnet20(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    shortcut: Shortcut = "conv",
    width: float = 1.0,
) -> nn.Module:
    """ResNet-20 in its CIFAR form: 3x3 stem, three stages of 16, 32, 64 channels, average pool, linear.

    `shortcut`, where a block changes shape: "conv" is a 1x1 convolution with batch norm (272,474 parameters),
    "identity" the parameter-free option A (269,722), see `PadShortcut`. `width` multiplies all channels.
    Images of any size: `image_size` is there because every builder takes it.
    Raises ModelError for sizes that are not positive.
    Reference: He et al. 2016, arXiv 1512.03385, section 4.2.
    """
    return _cifar_resnet(20, num_classes, in_channels, image_size, shortcut, width)


def resnet32(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    shortcut: Shortcut = "conv",
    width: float = 1.0,
) -> nn.Module:
    """ResNet-32 in its CIFAR form (see `resnet20`)."""
    return _cifar_resnet(32, num_classes, in_channels, image_size, shortcut, width)


def resnet44(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    shortcut: Shortcut = "conv",
    width: float = 1.0,
) -> nn.Module:
    """ResNet-44 in its CIFAR form (see `resnet20`)."""
    return _cifar_resnet(44, num_classes, in_channels, image_size, shortcut, width)


def resnet56(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    shortcut: Shortcut = "conv",
    width: float = 1.0,
) -> nn.Module:
    """ResNet-56 in its CIFAR form (see `resnet20`)."""
    return _cifar_resnet(56, num_classes, in_channels, image_size, shortcut, width)


def resnet110(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    shortcut: Shortcut = "conv",
    width: float = 1.0,
) -> nn.Module:
    """ResNet-110 in its CIFAR form (see `resnet20`)."""
    return _cifar_resnet(110, num_classes, in_channels, image_size, shortcut, width)


def resnet1202(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    shortcut: Shortcut = "conv",
    width: float = 1.0,
) -> nn.Module:
    """ResNet-1202 in its CIFAR form (see `resnet20`).

    A fresh one overflows float32 in eval mode, where each of its 600 blocks doubles the variance; batch statistics
    or float64 hold it.
    """
    return _cifar_resnet(1202, num_classes, in_channels, image_size, shortcut, width)


def resnet18_64(num_classes: int = 10, in_channels: int = 3, image_size: int = 64) -> nn.Module:
    """ResNet-18 for images of about 64 pixels: 3x3 stem, no max-pool, stages of 64, 128, 256, 512 channels.

    Two basic blocks a stage, 1x1 convolution shortcuts with batch norm, average pool, linear
    (11,271,432 parameters for 200 classes). The SynFlow paper uses it on CIFAR too.
    Images of any size: `image_size` is there because every builder takes it.
    Reference: He et al. 2016, arXiv 1512.03385, table 1; this form: Tanaka et al. 2020, arXiv 2006.05467.
    """
    return _resnet_64((2, 2, 2, 2), _basic_branch, num_classes, in_channels, image_size)


def resnet34_64(num_classes: int = 10, in_channels: int = 3, image_size: int = 64) -> nn.Module:
    """ResNet-34 for images of about 64 pixels: 3, 4, 6, 3 basic blocks (see `resnet18_64`)."""
    return _resnet_64((3, 4, 6, 3), _basic_branch, num_classes, in_channels, image_size)


def resnet50_64(num_classes: int = 10, in_channels: int = 3, image_size: int = 64) -> nn.Module:
    """ResNet-50 for images of about 64 pixels: 3, 4, 6, 3 bottleneck blocks (see `resnet18_64`).

    Blocks put out four times their stage's channels; their 3x3 convolution has the stride.
    """
    return _resnet_64((3, 4, 6, 3), _bottleneck_branch, num_classes, in_channels, image_size, expansion=4)


def wide_resnet18_64(num_classes: int = 10, in_channels: int = 3, image_size: int = 64) -> nn.Module:
    """WRN-18 for images of about 64 pixels: `resnet18_64` with stages of 128, 256, 512, 1024 channels.

    The stem keeps its 64 channels, as in the WRN-18 of width 2 of the reference.
    Differs from the SynFlow authors' code: there the basic block ignores its width, so that their WRN-18 is
    their ResNet-18; for that network take `resnet18_64`.
    Reference: Zagoruyko, Komodakis 2016, "Wide Residual Networks", arXiv 1605.07146, table 8.
    """
    return _resnet_64((2, 2, 2, 2), _basic_branch, num_classes, in_channels, image_size, expansion=2)


wrn18_64 = wide_resnet18_64


def _cifar_resnet(
    depth: int, num_classes: int, in_channels: int, image_size: int, shortcut: Shortcut, width: float
) -> nn.Module:
    """6n + 2 = `depth` layers: the stem, three stages of n blocks of two convolutions, the classifier."""
    require_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    if shortcut not in ("conv", "identity"):
        raise ModelError(f"shortcut is {shortcut!r}, but has to be 'conv' or 'identity'")
    channels = [max(1, round(width * base)) for base in (16, 32, 64)]
    num_blocks = [(depth - 2) // 6] * 3
    return _resnet(in_channels, channels[0], channels, num_blocks, num_classes, _basic_branch, shortcut)


def _resnet_64(
    num_blocks: Sequence[int],
    branch: Callable[[int, int, int], nn.Module],
    num_classes: int,
    in_channels: int,
    image_size: int,
    expansion: int = 1,
) -> nn.Module:
    require_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    channels = [expansion * base for base in (64, 128, 256, 512)]
    return _resnet(in_channels, 64, channels, num_blocks, num_classes, branch, "conv")


def _resnet(
    in_channels: int,
    stem_channels: int,
    stage_channels: Sequence[int],
    num_blocks: Sequence[int],
    num_classes: int,
    branch: Callable[[int, int, int], nn.Module],
    shortcut: Shortcut,
) -> nn.Module:
    """Stem, stages, head; all stages but the first halve the image. `stage_channels`: what blocks put out."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_conv(in_channels, stem_channels, 3), bn1=nn.BatchNorm2d(stem_channels), relu1=nn.ReLU()
    )
    channels = stem_channels
    for stage, (out_channels, n) in enumerate(zip(stage_channels, num_blocks, strict=True), start=1):
        blocks = []
        for block in range(n):
            stride = 2 if stage > 1 and block == 0 else 1
            blocks.append(
                ResidualBlock(
                    branch(channels, out_channels, stride),
                    _shortcut(channels, out_channels, stride, shortcut),
                )
            )
            channels = out_channels
        layers[f"stage{stage}"] = nn.Sequential(*blocks)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels, num_classes)
    return initialise(nn.Sequential(layers))


def _basic_branch(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=_conv(in_channels, out_channels, 3, stride),
            bn1=nn.BatchNorm2d(out_channels),
            relu1=nn.ReLU(),
            conv2=_conv(out_channels, out_channels, 3),
            bn2=nn.BatchNorm2d(out_channels),
        )
    )


def _bottleneck_branch(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    inner = out_channels // 4
    return nn.Sequential(
        OrderedDict(
            conv1=_conv(in_channels, inner, 1),
            bn1=nn.BatchNorm2d(inner),
            relu1=nn.ReLU(),
            conv2=_conv(inner, inner, 3, stride),
            bn2=nn.BatchNorm2d(inner),
            relu2=nn.ReLU(),
            conv3=_conv(inner, out_channels, 1),
            bn3=nn.BatchNorm2d(out_channels),
        )
    )


def _shortcut(in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if shortcut == "identity":
        before = (out_channels - in_channels) // 2
        return PadShortcut(stride, before, out_channels - in_channels - before)
    return nn.Sequential(OrderedDict(conv=_conv(in_channels, out_channels, 1, stride), bn=nn.BatchNorm2d(out_channels)))


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution that keeps the image's size up to its stride; no bias, as batch norm follows."""
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=padding, bias=False)
