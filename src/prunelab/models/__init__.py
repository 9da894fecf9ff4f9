"""Networks by name: each builder takes (num_classes, in_channels, image_size, ...) and returns an nn.Module.

Images are square, `image_size` pixels wide. Output layers are named `classifier`; what leads around the
branch of a residual block, `shortcut`. All are initialised by `initialise` (Kaiming-normal, fan in).
"""

from prunelab.models.errors import ModelError
from prunelab.models.initialisation import initialise
from prunelab.models.lenet import lenet5, lenet_300_100, mlp
from prunelab.models.resnet import (
    resnet18_64,
    resnet20,
    resnet32,
    resnet34_64,
    resnet44,
    resnet50_64,
    resnet56,
    resnet110,
    resnet1202,
    wide_resnet18_64,
    wrn18_64,
)
from prunelab.models.vgg import (
    conv2,
    conv4,
    conv6,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)

__all__ = [
    "ModelError",
    "conv2",
    "conv4",
    "conv6",
    "initialise",
    "lenet5",
    "lenet_300_100",
    "mlp",
    "resnet18_64",
    "resnet20",
    "resnet32",
    "resnet34_64",
    "resnet44",
    "resnet50_64",
    "resnet56",
    "resnet110",
    "resnet1202",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "wide_resnet18_64",
    "wrn18_64",
]
