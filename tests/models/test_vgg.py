from __future__ import annotations

import pytest
import torch
from torch import nn

from prunelab import models
from prunelab.models import ModelError, conv2, conv6, vgg11_bn, vgg16, vgg16_bn


def counts(net: nn.Module) -> tuple[int, int]:
    """All parameters, and the convolution and linear weights among them."""
    weights = [m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(parameter.numel() for parameter in net.parameters()), sum(weights)


def on_meta(name: str, **arguments: int) -> nn.Module:
    with torch.device("meta"):
        return getattr(models, name)(**arguments)


# Prunable by hand: 9 * inputs * outputs for each convolution, e.g. VGG-11 9 * (3*64 + 64*128 + 128*256 +
# 256*256 + 256*512 + 3*512*512) = 9,217,728, and 512 for each class. The other parameters are three per channel
# (bias, scale, shift) and one bias per class, e.g. VGG-11 3 * 2,752 + 10.
_FIRST_TWO_STAGES_OF_2 = 9 * (3 * 64 + 64**2 + 64 * 128 + 128**2)
_VGG13 = _FIRST_TWO_STAGES_OF_2 + 9 * (128 * 256 + 256**2 + 256 * 512 + 3 * 512**2) + 5_120
_VGG19 = _FIRST_TWO_STAGES_OF_2 + 9 * (128 * 256 + 3 * 256**2 + 256 * 512 + 7 * 512**2) + 5_120


@pytest.mark.parametrize(
    ("name", "num_classes", "all_parameters", "prunable"),
    [
        ("vgg16_bn", 100, 14_774_436, 14_761_664),
        ("vgg11_bn", 10, 9_231_114, 9_222_848),
        ("vgg13_bn", 10, _VGG13 + 3 * 2_944 + 10, _VGG13),
        ("vgg19_bn", 10, _VGG19 + 3 * 5_504 + 10, _VGG19),
    ],
)
def test_parameter_counts(name: str, num_classes: int, all_parameters: int, prunable: int) -> None:
    assert counts(on_meta(name, num_classes=num_classes)) == (all_parameters, prunable)


@pytest.mark.parametrize(("depth", "channels"), [(11, 2_752), (13, 2_944), (16, 4_224), (19, 5_504)])
def test_batch_norm_adds_a_scale_and_a_shift_per_channel(depth: int, channels: int) -> None:
    plain, with_norm = counts(on_meta(f"vgg{depth}")), counts(on_meta(f"vgg{depth}_bn"))
    assert with_norm[0] - plain[0] == 2 * channels
    assert with_norm[1] == plain[1]


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_depth_counts_the_published_layers_less_two_linear_ones(depth: int) -> None:
    names = [name for name, p in on_meta(f"vgg{depth}_bn").named_parameters() if p.dim() > 1]
    assert names == [*(f"conv{i}.weight" for i in range(1, depth - 2)), "classifier.weight"]


def test_vgg16_pools_between_its_stages() -> None:
    order = [name for name, _ in vgg16().named_children() if name.startswith(("conv", "pool"))]
    assert [order[i - 1] for i, name in enumerate(order) if name.startswith("pool")] == [
        "conv2",
        "conv4",
        "conv7",
        "conv10",
        "conv13",
    ]


def test_order_inside_a_layer() -> None:
    assert list(vgg11_bn()._modules)[:4] == ["conv1", "bn1", "relu1", "pool1"]


def test_vgg_takes_any_image_from_16_pixels_on() -> None:
    net = vgg16_bn().eval()
    for size in (16, 31, 40):
        assert net(torch.randn(1, 3, size, size)).shape == (1, 10)


# By hand from the layers in Frankle & Carbin 2019, figure 2, at 32 pixels (16, 8, 4 after the pools). Rounded
# there: Conv-2 38K convolution weights of 4.3M, Conv-4 260K of 2.4M, Conv-6 1.1M (of 1.7M, see conv6).
@pytest.mark.parametrize(
    ("name", "convolutions", "linear"),
    [
        ("conv2", 9 * (3 * 64 + 64 * 64), 64 * 16 * 16 * 256 + 256 * 256 + 256 * 10),
        ("conv4", 38_592 + 9 * (64 * 128 + 128 * 128), 128 * 8 * 8 * 256 + 256 * 256 + 256 * 10),
        ("conv6", 259_776 + 9 * (128 * 256 + 256 * 256), 256 * 4 * 4 * 256 + 256 * 256 + 256 * 10),
    ],
)
def test_conv_nets_have_the_published_weights(name: str, convolutions: int, linear: int) -> None:
    net = on_meta(name)
    assert counts(net)[1] == convolutions + linear
    assert sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d)) == convolutions
    rounded = {"conv2": (38_592, 4_300_992), "conv4": (259_776, 2_425_024), "conv6": (1_144_512, 2_261_184)}
    assert (convolutions, convolutions + linear) == rounded[name]


def test_conv_nets_pool_after_each_pair() -> None:
    assert list(conv6()._modules) == [
        *("conv1", "relu1", "conv2", "relu2", "pool1"),
        *("conv3", "relu3", "conv4", "relu4", "pool2"),
        *("conv5", "relu5", "conv6", "relu6", "pool3"),
        *("flatten", "fc1", "fc_relu1", "fc2", "fc_relu2", "classifier"),
    ]


def test_conv_nets_refuse_images_that_their_pools_would_empty() -> None:
    with pytest.raises(ModelError, match="conv6 needs images of at least 8 pixels, got image_size 7"):
        conv6(image_size=7)
    assert conv6(image_size=8)(torch.randn(1, 3, 8, 8)).shape == (1, 10)
    assert conv2(image_size=3)(torch.randn(1, 3, 3, 3)).shape == (1, 10)
