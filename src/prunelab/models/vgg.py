"""VGG networks in their CIFAR form, and their small relatives Conv-2, Conv-4, Conv-6."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from prunelab.models.errors import require_image_size, require_positive
from prunelab.models.initialisation import initialise
from prunelab.models.lenet import dense_layers

_VGG_CHANNELS = (64, 128, 256, 512, 512)
_VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg11(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-11 without batch norm, CIFAR form (see `vgg16_bn`)."""
    return _vgg(11, False, num_classes, in_channels, image_size)


def vgg13(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-13 without batch norm, CIFAR form (see `vgg16_bn`)."""
    return _vgg(13, False, num_classes, in_channels, image_size)


def vgg16(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-16 without batch norm, CIFAR form (see `vgg16_bn`)."""
    return _vgg(16, False, num_classes, in_channels, image_size)


def vgg19(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-19 without batch norm, CIFAR form (see `vgg16_bn`)."""
    return _vgg(19, False, num_classes, in_channels, image_size)


def vgg11_bn(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-11 with batch norm, CIFAR form (see `vgg16_bn`)."""
    return _vgg(11, True, num_classes, in_channels, image_size)


def vgg13_bn(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-13 with batch norm, CIFAR form (see `vgg16_bn`)."""
    return _vgg(13, True, num_classes, in_channels, image_size)


def vgg16_bn(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-16 with batch norm in the CIFAR form of the SynFlow paper.

    Five stages of [3x3 convolution with bias, batch norm, ReLU] with 64, 128, 256, 512, 512 channels, a 2x2
    max-pool between each two, global average pool, one linear layer (14,774,436 parameters for 100 classes).
    Images of any size from 16 pixels, for the four max-pools; raises ModelError for fewer, because a VGG with
    a pool left out is another network.
    Reference: Simonyan, Zisserman 2014, arXiv 1409.1556; this form: Tanaka et al. 2020, arXiv 2006.05467.
    """
    return _vgg(16, True, num_classes, in_channels, image_size)


def vgg19_bn(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-19 with batch norm, CIFAR form (see `vgg16_bn`)."""
    return _vgg(19, True, num_classes, in_channels, image_size)


def conv2(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """Conv-2: two 3x3 convolutions of 64 channels (see `conv6`)."""
    return _conv_net("conv2", (64,), num_classes, in_channels, image_size)


def conv4(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """Conv-4: two 3x3 convolutions each of 64 and 128 channels (see `conv6`)."""
    return _conv_net("conv4", (64, 128), num_classes, in_channels, image_size)


def conv6(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """Conv-6: two 3x3 convolutions each of 64, 128 and 256 channels, then linear layers of 256, 256, classes.

    Convolutions have biases and ReLU; a 2x2 max-pool follows each pair. No batch norm.
    Images of exactly `image_size` pixels, at least 2, 4, 8 for Conv-2, 4, 6; raises ModelError for fewer.
    Reference: Frankle, Carbin 2019, arXiv 1803.03635, figure 2, whose weight counts are met by Conv-2 and
    Conv-4; for Conv-6 it says 1.7M, while the layers it lists have 2.26M.
    """
    return _conv_net("conv6", (64, 128, 256), num_classes, in_channels, image_size)


def _vgg(depth: int, batch_norm: bool, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    require_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    require_image_size(f"vgg{depth}{'_bn' if batch_norm else ''}", image_size, smallest=16)
    stages = [[channels] * n for channels, n in zip(_VGG_CHANNELS, _VGG_STAGES[depth], strict=True)]
    layers = _conv_layers(in_channels, stages, batch_norm)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers.update(dense_layers([_VGG_CHANNELS[-1], num_classes]))
    return initialise(nn.Sequential(layers))


def _conv_net(
    name: str, stage_channels: Sequence[int], num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    require_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    num_pools = len(stage_channels)
    require_image_size(name, image_size, smallest=2**num_pools)
    layers = _conv_layers(in_channels, [[channels] * 2 for channels in stage_channels], batch_norm=False)
    layers[f"pool{num_pools}"] = nn.MaxPool2d(2)
    last_size = image_size // 2**num_pools
    layers.update(dense_layers([stage_channels[-1] * last_size**2, 256, 256, num_classes]))
    return initialise(nn.Sequential(layers))


def _conv_layers(in_channels: int, stages: Sequence[Sequence[int]], batch_norm: bool) -> OrderedDict[str, nn.Module]:
    """conv1 [bn1] relu1 conv2 ... for the channels in `stages`, with max-pools pool1, ... between stages."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    index = 0
    for stage, stage_channels in enumerate(stages):
        if stage > 0:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        for channels in stage_channels:
            index += 1
            layers[f"conv{index}"] = nn.Conv2d(in_channels, channels, 3, padding=1)
            if batch_norm:
                layers[f"bn{index}"] = nn.BatchNorm2d(channels)
            layers[f"relu{index}"] = nn.ReLU()
            in_channels = channels
    return layers
