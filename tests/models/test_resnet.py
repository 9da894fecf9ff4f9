from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from prunelab import models
from prunelab.models import (
    ModelError,
    resnet18_64,
    resnet20,
    resnet50_64,
    resnet1202,
    wide_resnet18_64,
    wrn18_64,
)
from prunelab.models.resnet import PadShortcut, ResidualBlock


def counts(net: nn.Module) -> tuple[int, int]:
    """All parameters, and the convolution and linear weights among them."""
    weights = [m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(parameter.numel() for parameter in net.parameters()), sum(weights)


def on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return getattr(models, name)(**arguments)


def test_resnet20_counts() -> None:
    assert counts(on_meta("resnet20")) == (272_474, 270_896)
    assert counts(on_meta("resnet20", shortcut="identity")) == (269_722, 268_336)


# By hand, with n blocks in each stage of 16, 32, 64 channels: the 3x3 convolutions of stem and blocks, a
# scale and a shift for each of their output channels, 64 * 10 + 10 for the classifier.
# He et al. 2016, table 6, rounds them to .27M, .46M, .66M, .85M, 1.7M, 19.4M.
@pytest.mark.parametrize(
    ("depth", "published"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_cifar_family_counts(depth: int, published: float) -> None:
    n = (depth - 2) // 6
    convolutions = 27 * 16 + 9 * (2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    identity = counts(on_meta(f"resnet{depth}", shortcut="identity"))
    assert identity == (convolutions + norms + 650, convolutions + 640)
    assert round(identity[0] / 1e6, 2 if published < 1 else 1) == published
    # The two 1x1 shortcuts: 16*32 + 32*64 weights, and a scale and shift for 32 + 64 channels.
    assert counts(on_meta(f"resnet{depth}")) == (identity[0] + 2_560 + 192, identity[1] + 2_560)


# torchvision documents 11,689,512, 21,797,672 and 25,557,032 parameters for 1,000 classes. A 3x3 stem has
# 64 * 3 * (49 - 9) = 7,680 fewer than the 7x7 one.
@pytest.mark.parametrize(
    ("name", "documented"),
    [("resnet18_64", 11_689_512), ("resnet34_64", 21_797_672), ("resnet50_64", 25_557_032)],
)
def test_64_pixel_family_has_the_imagenet_counts_less_the_stem(name: str, documented: int) -> None:
    assert counts(on_meta(name, num_classes=1000))[0] == documented - 7_680


def test_resnet18_64_counts_on_tiny_imagenet() -> None:
    assert counts(on_meta("resnet18_64", num_classes=200)) == (11_271_432, 11_261_632)


def test_wide_resnet18_64_has_the_published_count() -> None:
    # Zagoruyko & Komodakis 2016, table 8: WRN-18 of width 2 has 45.6M parameters with its 7x7 stem.
    # By hand: stem 1,728 + 128; for each stage of c channels fed by b the convolutions 9bc + 27c^2, the
    # shortcut bc and 10c for the five norms; the classifier.
    stages = [(64, 128), (128, 256), (256, 512), (512, 1024)]
    by_hand = 1_856 + sum(10 * b * c + 27 * c**2 + 10 * c for b, c in stages) + 1024 * 1000 + 1000
    assert counts(on_meta("wide_resnet18_64", num_classes=1000))[0] == by_hand == 45_610_536
    assert wrn18_64 is wide_resnet18_64


@pytest.mark.parametrize(("name", "reference"), [("resnet18_64", "resnet18"), ("resnet50_64", "resnet50")])
def test_64_pixel_family_computes_what_torchvisions_does_with_a_small_stem(name: str, reference: str) -> None:
    net = getattr(models, name)().eval()
    expected = getattr(torchvision.models, reference)(num_classes=10).eval()
    expected.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    expected.maxpool = nn.Identity()
    expected.load_state_dict(dict(zip(expected.state_dict(), net.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(images), expected(images), rtol=1e-4)


@pytest.mark.parametrize("shortcut", ["conv", "identity"])
def test_width_multiplies_all_channels(shortcut: Any) -> None:
    net = on_meta("resnet20", shortcut=shortcut, width=2.5)
    assert [net.conv1.out_channels, *(stage[-1].branch.conv2.out_channels for stage in net[3:6])] == [
        40,
        40,
        80,
        160,
    ]


@pytest.mark.parametrize("width", [0.01, 0.03, 0.1, 1.7])
@pytest.mark.parametrize("shortcut", ["conv", "identity"])
def test_any_width_keeps_at_least_one_channel(shortcut: Any, width: float) -> None:
    assert resnet20(shortcut=shortcut, width=width)(torch.randn(2, 3, 9, 9)).shape == (2, 10)


def test_resnet1202_runs() -> None:
    net, images = resnet1202(num_classes=4), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for logits in (net(images), net.double().eval()(images.double())):
            assert logits.shape == (1, 4)
            assert logits.isfinite().all()


def test_shortcut_convolutions_are_named_shortcut() -> None:
    def shortcuts(net: nn.Module) -> list[str]:
        return [name for name, p in net.named_parameters() if "shortcut" in name.split(".") and p.dim() > 1]

    assert shortcuts(resnet20()) == ["stage2.0.shortcut.conv.weight", "stage3.0.shortcut.conv.weight"]
    assert shortcuts(resnet20(shortcut="identity")) == []
    assert shortcuts(resnet18_64()) == [f"stage{stage}.0.shortcut.conv.weight" for stage in (2, 3, 4)]
    assert shortcuts(resnet50_64()) == [f"stage{stage}.0.shortcut.conv.weight" for stage in (1, 2, 3, 4)]


def test_names_are_stable() -> None:
    # Masks and checkpoints are stored under these names.
    names = list(resnet20().state_dict())
    assert names[:7] == [
        *("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"),
        *("bn1.num_batches_tracked", "stage1.0.branch.conv1.weight"),
    ]
    assert names[-3:] == [
        "stage3.2.branch.bn2.num_batches_tracked",
        "classifier.weight",
        "classifier.bias",
    ]


def test_pad_shortcut_takes_every_second_pixel_between_zero_channels() -> None:
    images = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5)
    padded = PadShortcut(stride=2, before=1, after=2)(images)
    assert padded.shape == (2, 6, 3, 3)
    assert torch.equal(padded[:, 1:4], images[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert not padded[:, [0, 4, 5]].any()


def test_pad_counts_of_a_stage() -> None:
    shortcut = resnet20(shortcut="identity").stage3[0].shortcut
    assert (shortcut.stride, shortcut.before, shortcut.after) == (2, 16, 16)
    assert "before=16, after=16" in repr(shortcut)


def test_block_adds_branch_and_shortcut_before_its_relu() -> None:
    block = ResidualBlock(nn.Linear(3, 3), nn.Identity())
    x = torch.randn(4, 3)
    assert torch.equal(block(x), F.relu(block.branch(x) + x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shortcut": "A"}, "shortcut is 'A', but has to be 'conv' or 'identity'"),
        ({"width": 0}, "width is 0"),
        ({"width": float("nan")}, "width is nan"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        resnet20(**arguments)
    assert "\n" not in str(error.value)
