from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from prunelab import models
from prunelab.compaction import CompactionError, compact, count_channels
from prunelab.pruning import Masks, prunable_names
from prunelab.pruning import prune as prune_by
from prunelab.pruning.criteria import synflow

from .exactness import Step, assert_exact, make_trained, masked, ragged_masks

BUILDERS = sorted(set(models.__all__) - {"ModelError", "initialise", "wrn18_64"})  # the last is a second name


def build(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Pictures are as large as the network needs: on one pixel batch norm of equal numbers gives 0 up to rounding, and
    whether a ReLU passes that or not is chance."""
    size = 16 if "vgg" in name or name.endswith("_64") or name == "lenet5" else 8
    is_narrow = name.startswith("resnet") and not name.endswith("_64")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = getattr(models, name)(in_channels=1, image_size=size, **({"width": 0.5} if is_narrow else {}))
        batch = torch.randn(4, 1, size, size, dtype=torch.float64), torch.randint(10, (4,))
    return net, batch


@pytest.mark.parametrize("name", BUILDERS)
def test_every_model(name: str) -> None:
    net, batch = build(name)
    masks = ragged_masks(net, 0.05, 0, 0.5)
    found = assert_exact(net, masks, batch, steps=Step(20))
    assert count_channels(found.net) < 0.7 * count_channels(net)


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("shortcut", ["conv", "identity"])
def test_resnet20_after_synflow(density: float, shortcut: str) -> None:
    """20 steps with momentum and weight decay, too."""
    _, batch = build("resnet20")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.resnet20(in_channels=1, shortcut=shortcut)
    masks = prune_by(net, synflow, density=density, example_input=batch[0][:1].float(), rounds=10)
    found = assert_exact(net, masks, batch, steps=Step(20))
    assert count_channels(found.net) < {0.1: 0.95, 0.01: 0.55, 0.001: 0.25}[density] * count_channels(net)
    make_trained(net, 0)
    trained = assert_exact(net, masks, batch, steps=Step(2))
    assert count_channels(trained.net) >= count_channels(found.net)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options: dict[str, Any] = {"width_mult": 0.25, "dropout": 0.0} if name == "mobilenet_v2" else {}
        net = getattr(torchvision.models, name)(num_classes=10, **options)
        size = 32 if name == "mobilenet_v2" else 64  # 3x3 weights on one pixel have no signal
        batch = torch.randn(4, 3, size, size, dtype=torch.float64), torch.randint(10, (4,))
    scored = copy.deepcopy(net)
    for module in list(scored.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, nn.ReLU6):  # synflow's signals are far above 6
                setattr(module, child, nn.ReLU())
    masks = prune_by(scored, synflow, density=0.01, example_input=batch[0][:1].float(), rounds=3)
    found = assert_exact(net, masks, batch, steps=Step(20, 0.001))
    assert count_channels(found.net) < 0.9 * count_channels(net)


class Branching(nn.Module):
    def __init__(self, forward: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.act = forward
        self.conv, self.fc = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.act(self, x)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "values": (lambda net, x: net.fc(net.features(x)) if x.sum() > 0 else x, "cannot be traced"),
    "training": (lambda net, x: net.fc(net.features(x * 2 if net.training else x)), "other things in training"),
    "a number in training": (lambda net, x: net.fc(net.features(x * (2 if net.training else 1))), "other things"),
    "dictionary": (lambda net, x: {"logits": net.fc(net.features(x))}, "returns a dict"),
    "wrong shape": (lambda net, x: net.fc(x[:, :, 1:, 1:]), "cannot be run on the example"),
    "nothing": (lambda net, x: net.features(x).__setitem__(0, 0), "returns a NoneType"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    forward, reason = REFUSED[name]
    net = Branching(forward)
    with pytest.raises(CompactionError, match=reason) as caught:
        compact(net, ragged_masks(net, 0.5, 0), torch.zeros(1, 2, 6, 6))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_forward_that_casts_to_its_own_precision() -> None:
    net = Branching(lambda net, x: net.fc(net.features(x.float())))
    masks = ragged_masks(net, 0.5, 0)
    dead = {**masks, "fc.weight": masks["fc.weight"].clone()}
    dead["fc.weight"][:, 1] = False
    found = compact(net, Masks(dead), torch.zeros(1, 2, 6, 6))
    assert found.net.conv.out_channels < 6
    assert next(net.parameters()).dtype == torch.float32


def test_networks_that_cannot_be_copied_are_refused() -> None:
    net = Branching(lambda net, x: net.fc(net.features(x)))
    masks = ragged_masks(net, 0.5, 0)
    locked, computed = copy.deepcopy(net), copy.deepcopy(net)
    locked.lock = threading.Lock()
    prune.identity(computed.conv, "weight")
    for other in (locked, computed):
        with pytest.raises(CompactionError, match="cannot be copied"):
            compact(other, masks, torch.zeros(1, 2, 6, 6))


def test_networks_that_store_their_features_hold_no_traces() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        net.last = net.features(x)
        return net.fc(net.last)

    net = Branching(forward)
    masks = ragged_masks(net, 0.9, 0, 0.4)
    small = compact(net, masks, torch.zeros(1, 2, 6, 6)).net
    assert not hasattr(small, "last")
    assert not hasattr(net, "last")


def test_computed_weights_are_pinned() -> None:
    net = Branching(lambda net, x: net.fc(net.features(x))).double()
    masks = ragged_masks(net, 0.9, 1, 0.5)
    parametrizations.weight_norm(net.conv)
    found = compact(net, Masks({"fc.weight": masks["fc.weight"]}), torch.zeros(1, 2, 6, 6).double())
    assert not found.index.kept


def test_a_single_layer_stays_as_it_is() -> None:
    net = nn.Linear(4, 3)
    found = compact(net, ragged_masks(net, 0.5, 0, 0.5), torch.zeros(1, 4))
    assert not found.index.kept
    assert found.net.weight.shape == (3, 4)


@pytest.mark.parametrize("multiple", [0, -1])
def test_multiples_below_one_are_refused(multiple: int) -> None:
    net = nn.Linear(4, 3)
    with pytest.raises(CompactionError, match="multiples of"):
        compact(net, ragged_masks(net, 0.5, 0), torch.zeros(1, 4), multiple=multiple)


def test_mode_dtype_and_memory_format_stay() -> None:
    net = Branching(lambda net, x: net.fc(net.features(x))).to(torch.bfloat16).to(memory_format=torch.channels_last)
    net.train()
    masks = dict(Masks.dense(net, prunable_names(net)))
    masks["fc.weight"][:, 2] = False
    small = compact(net, Masks(masks), torch.zeros(1, 2, 6, 6, dtype=torch.bfloat16)).net
    assert small.training
    assert small.conv.weight.shape == (5, 2, 3, 3)
    assert small.conv.weight.dtype == torch.bfloat16
    assert small.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_pruned_weights_count_as_zero_whatever_they_hold() -> None:
    net, batch = build("lenet5")
    masks = ragged_masks(net, 0.3, 0, 0.5)
    one = compact(net.double(), masks, batch[0][:1])
    other = compact(masked(net, masks), masks, batch[0][:1])
    assert all(torch.equal(tensor, other.net.state_dict()[name]) for name, tensor in one.net.state_dict().items())
    assert one.masks == other.masks
