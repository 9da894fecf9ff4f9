from __future__ import annotations

import pytest
import torch
from torch import nn

from prunelab.models import ModelError, lenet5, lenet_300_100, mlp


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_lenet_300_100_has_the_published_count_on_mnist() -> None:
    # 784*300 + 300 + 300*100 + 100 + 100*10 + 10
    assert num_parameters(lenet_300_100()) == 266_610
    assert list(lenet_300_100().state_dict()) == [
        "fc1.weight",
        "fc1.bias",
        "fc2.weight",
        "fc2.bias",
        "classifier.weight",
        "classifier.bias",
    ]


def test_lenet5_has_the_431k_of_the_pruning_papers_on_mnist() -> None:
    # Images 28 -> 24 -> 12 -> 8 -> 4: (25*20 + 20) + (25*20*50 + 50) + (50*16*500 + 500) + (500*10 + 10)
    assert num_parameters(lenet5()) == 520 + 25_050 + 400_500 + 5_010 == 431_080


@pytest.mark.parametrize("image_size", [16, 17, 18, 19, 20, 27, 31])
def test_lenet5_fits_its_linear_layer_to_any_image(image_size: int) -> None:
    net = lenet5(image_size=image_size)
    assert net(torch.randn(1, 1, image_size, image_size)).shape == (1, 10)


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
def test_mlp_has_as_many_linear_layers_as_its_depth(depth: int) -> None:
    net = mlp(num_classes=3, image_size=8, depth=depth, width=6)
    sizes = [(layer.in_features, layer.out_features) for layer in net.modules() if isinstance(layer, nn.Linear)]
    assert len(sizes) == depth
    assert sizes[0][0] == 64
    assert sizes[-1][1] == 3
    assert all(size == (6, 6) for size in sizes[1:-1])
    assert sum(isinstance(module, nn.ReLU) for module in net.modules()) == depth - 1


def test_mlp_computes_what_its_layers_say() -> None:
    net = mlp(num_classes=2, image_size=2, depth=2, width=3)
    images = torch.randn(5, 1, 2, 2)
    hidden = (images.reshape(5, 4) @ net.fc1.weight.T).clamp(min=0)
    assert torch.allclose(net(images), hidden @ net.classifier.weight.T)


@pytest.mark.parametrize(("argument", "value"), [("depth", 0), ("width", -3)])
def test_mlp_refuses_sizes_that_are_not_positive(argument: str, value: int) -> None:
    with pytest.raises(ModelError, match=f"{argument} is {value}"):
        mlp(**{argument: value})
