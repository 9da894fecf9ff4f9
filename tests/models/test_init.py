"""What every builder of prunelab.models promises, checked on all of them."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import Counter

import pytest
import torch
from torch import fx, nn

from prunelab import models

BUILDERS = sorted(set(models.__all__) - {"ModelError", "initialise"})
IMAGES = [(1, 28), (3, 32), (3, 64)]
# ResNet-1202 costs seconds and differs from ResNet-110 in its depth only: test_resnet.py runs it once.
QUICK = [name for name in BUILDERS if name not in ("resnet1202", "wrn18_64")]
LARGER_THAN_DIGITS = ["lenet5", *(name for name in BUILDERS if name.startswith("vgg"))]


def build(name: str, **arguments: object) -> nn.Module:
    return getattr(models, name)(**arguments)


def meta_logits(name: str, in_channels: int, size: int) -> torch.Tensor:
    """Shapes without the arithmetic."""
    with torch.device("meta"), torch.no_grad():
        net = build(name, num_classes=7, in_channels=in_channels, image_size=size)
        return net.eval()(torch.empty(2, in_channels, size, size))


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_take_the_same_three_arguments_first(name: str) -> None:
    arguments = list(inspect.signature(getattr(models, name)).parameters)
    assert arguments[:3] == ["num_classes", "in_channels", "image_size"]


@pytest.mark.parametrize(("in_channels", "size"), IMAGES)
@pytest.mark.parametrize("name", QUICK)
def test_logits_have_one_column_per_class(name: str, in_channels: int, size: int) -> None:
    assert meta_logits(name, in_channels, size).shape == (2, 7)


@pytest.mark.parametrize("name", [name for name in QUICK if name not in LARGER_THAN_DIGITS])
def test_the_rest_takes_the_8_pixel_digits(name: str) -> None:
    assert meta_logits(name, in_channels=1, size=8).shape == (2, 7)


@pytest.mark.parametrize("name", LARGER_THAN_DIGITS)
def test_images_too_small_to_halve_are_refused_in_one_line(name: str) -> None:
    for size in (8, 15):
        with pytest.raises(models.ModelError, match=f"^{name} needs images of at least 16 pixels, got ") as error:
            meta_logits(name, in_channels=1, size=size)
        assert "\n" not in str(error.value)
    assert meta_logits(name, in_channels=1, size=16).shape == (2, 7)


@pytest.mark.parametrize("argument", ["num_classes", "in_channels", "image_size"])
@pytest.mark.parametrize("name", BUILDERS)
def test_sizes_that_are_not_positive_are_refused(name: str, argument: str) -> None:
    with pytest.raises(models.ModelError, match=f"{argument} is 0"):
        build(name, **{argument: 0})


@pytest.fixture(scope="module", params=QUICK)
def net_and_images(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    """A network with its default arguments, in eval mode, and an image for it."""
    arguments = inspect.signature(getattr(models, request.param)).parameters
    size = 16 if request.param.endswith("_64") else arguments["image_size"].default
    return build(request.param).eval(), torch.randn(1, arguments["in_channels"].default, size, size)


@torch.no_grad()
def test_symbolic_trace_gives_the_same_logits(net_and_images: tuple[nn.Module, torch.Tensor]) -> None:
    net, images = net_and_images
    logits = net(images)
    assert logits.shape == (1, 10)
    assert logits.isfinite().all()
    assert torch.equal(fx.symbolic_trace(net)(images), logits)


@torch.no_grad()
def test_each_module_is_used_once_in_a_forward(net_and_images: tuple[nn.Module, torch.Tensor]) -> None:
    net, images = net_and_images
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, path=path: calls.update([path]))
        for path, module in net.named_modules(remove_duplicate=False)
    ]
    net(images)
    for handle in handles:
        handle.remove()
    assert calls == Counter(path for path, _ in net.named_modules())


@torch.no_grad()
def test_deepcopy_and_pickle_give_the_same_logits(net_and_images: tuple[nn.Module, torch.Tensor]) -> None:
    net, images = net_and_images
    assert torch.equal(copy.deepcopy(net)(images), net(images))
    assert torch.equal(pickle.loads(pickle.dumps(net))(images), net(images))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_output_layer_is_the_last_and_named_classifier(name: str) -> None:
    with torch.device("meta"):
        net = build(name, num_classes=7)
    assert list(net.state_dict())[-2:] == ["classifier.weight", "classifier.bias"]
    assert net.classifier.out_features == 7


@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn", "lenet5"])
def test_a_step_reaches_every_parameter(name: str) -> None:
    net, size = build(name), 28 if name == "lenet5" else 32
    net(torch.randn(4, 1 if name == "lenet5" else 3, size, size)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(p.grad.any() for p in net.parameters() if p.dim() > 1)
