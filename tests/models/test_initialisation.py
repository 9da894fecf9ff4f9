from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prunelab.models import initialise, resnet20, vgg11_bn


@pytest.fixture(scope="module")
def vgg() -> nn.Module:
    torch.manual_seed(0)
    return vgg11_bn(num_classes=100)


def weighted(net: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def test_weights_are_normal_with_variance_two_over_fan_in(vgg: nn.Module) -> None:
    for layer in weighted(vgg):
        weight = layer.weight.detach().double()
        std = math.sqrt(2 / weight[0].numel())
        tolerance = 5 / math.sqrt(weight.numel())  # in standard errors of the mean
        assert abs(weight.mean() / std) < tolerance
        assert abs(weight.std() / std - 1) < tolerance
        # E|w| / std is .798 for a normal distribution and .866 for a uniform one.
        assert abs(weight.abs().mean() / std - math.sqrt(2 / math.pi)) < tolerance


def test_fan_in_not_fan_out() -> None:
    layer = initialise(nn.Linear(10_000, 10))
    assert abs(layer.weight.std() / math.sqrt(2 / 10_000) - 1) < 0.02


def test_biases_are_zero_and_batch_norm_is_the_identity(vgg: nn.Module) -> None:
    assert all(not layer.bias.any() for layer in weighted(vgg))
    for norm in (module for module in vgg.modules() if isinstance(module, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()
        assert not norm.running_mean.any()
        assert (norm.running_var == 1).all()


def test_a_trained_network_is_drawn_anew_from_the_same_distribution() -> None:
    torch.manual_seed(1)
    fresh = resnet20()
    torch.manual_seed(2)
    net = resnet20()
    net(torch.randn(8, 3, 32, 32))  # moves the running statistics
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7.0)
    draw_like_the_builder = torch.Generator().manual_seed(0)
    torch.set_rng_state(draw_like_the_builder.get_state())
    assert initialise(net) is net
    state = {key: value.clone() for key, value in net.state_dict().items()}
    torch.set_rng_state(draw_like_the_builder.get_state())
    expected = initialise(fresh).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_the_seed_decides_the_weights() -> None:
    def first_weight(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return resnet20().conv1.weight

    assert torch.equal(first_weight(0), first_weight(0))
    assert not torch.equal(first_weight(0), first_weight(1))
