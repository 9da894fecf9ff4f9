"""Fully connected networks and the LeNets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from prunelab.models.errors import require_image_size, require_positive
from prunelab.models.initialisation import initialise


def dense_layers(sizes: Sequence[int]) -> OrderedDict[str, nn.Module]:
    """Flatten, then linear layers from sizes[0] inputs to sizes[-1] logits, a ReLU between each two.

    Names: flatten, fc1, fc_relu1, fc2, fc_relu2, ..., classifier.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes[:-1]), start=1):
        layers[f"fc{index}"] = nn.Linear(fan_in, fan_out)
        layers[f"fc_relu{index}"] = nn.ReLU()
    layers["classifier"] = nn.Linear(sizes[-2], sizes[-1])
    return layers


def mlp(
    num_classes: int = 10, in_channels: int = 1, image_size: int = 28, depth: int = 3, width: int = 100
) -> nn.Module:
    """Fully connected ReLU network with `depth` linear layers, all hidden ones `width` wide.

    `depth` counts the output layer, so depth 1 is softmax regression. Images of exactly `image_size` pixels.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size, depth=depth, width=width)
    hidden = [width] * (depth - 1)
    return initialise(nn.Sequential(dense_layers([in_channels * image_size**2, *hidden, num_classes])))


def lenet_300_100(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """LeNet-300-100: fully connected, hidden layers of 300 and 100 units, ReLU (266,610 parameters on MNIST).

    Images of exactly `image_size` pixels.
    Reference: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-Based Learning Applied to Document Recognition";
    with ReLU as in Han et al. 2015 (arXiv 1506.02626) and all pruning papers since.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return initialise(nn.Sequential(dense_layers([in_channels * image_size**2, 300, 100, num_classes])))


def lenet5(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """LeNet-5 as pruning papers mean it: 5x5 convolutions of 20 and 50 channels, 500 hidden units.

    The convolutions are not padded; each is followed by ReLU and 2x2 max-pool. 431,080 parameters on MNIST.
    Images of exactly `image_size` pixels, at least 16. Raises ModelError for smaller ones.
    Reference: the Caffe form of LeNet-5 in Han et al. 2015 (arXiv 1506.02626, table 1) and
    Lee et al. 2019 (SNIP, arXiv 1810.02340, section 5). The smaller network of 1998 is another one.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    require_image_size("lenet5", image_size, smallest=16)
    last_size = ((image_size - 4) // 2 - 4) // 2
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, 20, 5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
    )
    layers.update(dense_layers([50 * last_size**2, 500, num_classes]))
    return initialise(nn.Sequential(layers))
