"""Passes through blocks: they are taken, and what is dropped is what whole passes drop."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from prunelab.models import resnet20
from prunelab.pruning import Masks, prune
from prunelab.pruning.blocks import Block
from prunelab.pruning.criteria import SynFlow
from prunelab.pruning.flow import Flow
from prunelab.pruning.flow_rounds import WORTH, FlowRounds

from .nets import mlp, residual, seeded, vgg_like


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, a weight that is used twice, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(2, 12, 3), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.twice, self.grouped = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.relu(self.depthwise(torch.relu(self.stem(x)))))
        x = torch.cat([x, self.grouped(self.twice(x))], 1)
        return self.head(x.mean((2, 3)))


class Signals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(2, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).amax(2))


IMAGE = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
NETS: dict[str, Any] = {
    "mlp": (lambda: mlp(6, 40, 40, 40, 4), torch.zeros(1, 6, dtype=torch.float64)),
    "vgg": (vgg_like, IMAGE),
    "residual": (residual, IMAGE),
    "mixed": (lambda: seeded(Mixed(), 0), IMAGE),
    "signals": (lambda: seeded(Signals(), 0), torch.zeros(1, 2, 12, dtype=torch.float64)),
    "resnet, projections": (lambda: seeded(resnet20(width=0.5), 0), torch.zeros(1, 3, 8, 8)),
    "resnet, padded": (lambda: seeded(resnet20(width=0.5, shortcut="identity"), 0), torch.zeros(1, 3, 8, 8)),
}


@contextlib.contextmanager
def seen() -> Iterator[list[FlowRounds]]:
    """The rounds that are made meanwhile."""
    found: list[FlowRounds] = []
    with pytest.MonkeyPatch.context() as patch:
        make = FlowRounds.__init__
        patch.setattr(FlowRounds, "__init__", lambda self, *a, **k: found.append(self) or make(self, *a, **k))
        yield found


def share(rounds: FlowRounds) -> float:
    """Of the work of a whole pass."""
    whole = [Block(weight.shape, weight) for weight in rounds._flow.weights]
    return rounds._work(rounds._blocks) / rounds._work(whole)


@pytest.mark.parametrize("knobs", [{}, {"objective": "l2"}, {"gradient_only": True}], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_masks_of_every_round_are_those_of_whole_passes(name: str, knobs: dict[str, Any]) -> None:
    build, example = NETS[name]
    net = build().train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    masks: dict[str, list[Masks]] = {"plain": [], "fast": []}
    options: dict[str, Any] = {"density": 0.03, "rounds": 25, "example_input": example}
    with seen() as found:
        for path, own in masks.items():
            criterion = SynFlow(path=path, **knobs)  # type: ignore[arg-type]
            prune(net, criterion, on_round=lambda i, d, s, m, own=own: own.append(m), **options)
    assert masks["fast"] == masks["plain"]
    assert share(found[0]) <= WORTH
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_blocks_are_taken_for_the_memory_that_they_save() -> None:
    """Most multiplications are the convolution's, which stays; most weights the linear layers', which nearly go."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(4, 500, bias=False), nn.ReLU(), nn.Linear(500, 10, bias=False)),
    )
    with seen() as found:
        masks = prune(seeded(net, 0), SynFlow(rounds=25), density=0.03, example_input=torch.zeros(1, 3, 32, 32))
    (rounds,) = found
    convolution, *linear = rounds._blocks
    assert convolution.weight.shape == convolution.shape
    assert masks.layer_num_kept()["0.weight"] > 0
    num_products = 108 * 1024 + sum(block.weight.numel() for block in linear)
    assert num_products > WORTH * (108 * 1024 + 7000)
    assert not rounds._is_whole


def test_blocks_are_checked_by_one_more_pass() -> None:
    build, example = NETS["mlp"]
    with seen() as found, mock.patch.object(Flow, "gradients", autospec=True, side_effect=Flow.gradients) as passes:
        prune(build(), SynFlow(rounds=25), density=0.03, example_input=example)
    assert not found[0]._is_whole
    assert passes.call_count == 25 + 1 + found[0].num_again


@pytest.mark.parametrize("name", ["vgg", "residual"])
def test_nothing_waits_for_the_garbage_collector(name: str) -> None:
    """Many times the bytes of the network would."""
    build, example = NETS[name]
    alive: list[weakref.ref[Any]] = []

    def on_round(index: int, density: float, scores: Any, masks: Masks) -> None:
        alive.append(weakref.ref(scores))

    with seen() as found:
        gc.disable()
        try:
            prune(build(), SynFlow(rounds=25), density=0.03, example_input=example, on_round=on_round)
            alive += [weakref.ref(part) for part in (found[0], found[0]._flow, found[0]._flow.weights[0])]
            found.clear()
            assert [one() for one in alive] == [None] * 28
        finally:
            gc.enable()


def test_each_layer_of_a_chain_has_the_same_sum_of_scores() -> None:
    def on_round(index: int, density: float, scores: Any, masks: Masks) -> None:
        sums = torch.stack([values.sum() for values in scores.values()])
        assert_close(sums, sums[:1].expand_as(sums), rtol=1e-12, atol=0)
        assert all(scores[name].shape == masks[name].shape for name in masks)

    build, example = NETS["mlp"]
    with seen() as found:
        prune(build(), SynFlow(rounds=25), density=0.03, example_input=example, on_round=on_round)
    assert share(found[0]) <= WORTH


def test_scores_that_only_rounding_tells_apart_are_made_by_whole_passes() -> None:
    """Few paths are left, and weights of one path without branches have equal scores but for rounding. Of this network
    blocks alone would keep others: so it was on one processor, which is why it is this seed."""
    net = seeded(Mixed(), 3)
    options: dict[str, Any] = {"density": 0.003, "rounds": 40, "example_input": IMAGE}
    with seen() as found:
        masks = prune(net, SynFlow(path="fast"), **options)
    assert masks == prune(net, SynFlow(path="plain"), **options)
    assert found[0].num_again > 0
    assert not found[0]._is_whole


class Hides(torch.autograd.Function):
    """A reader of a weight that torch tells nobody of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, gradients[0].T @ x


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 30), nn.Linear(30, 30), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.second(x) + Hides.apply(x, self.second.weight))


class Read(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 30), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x) * self.layer.weight.detach().amax())


class Product(nn.Module):
    """Sums that are no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 30), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x) @ torch.ones(30, 30, dtype=x.dtype))


@pytest.mark.parametrize("kind", [Hidden, Read, Product])
def test_networks_that_blocks_do_not_go_with_are_gone_through_as_a_whole(kind: type[nn.Module]) -> None:
    net = seeded(kind(), 0)
    options: dict[str, Any] = {"density": 0.05, "rounds": 20, "example_input": torch.zeros(1, 6, dtype=torch.float64)}
    with seen() as found:
        masks = prune(net, SynFlow(path="fast"), **options)
    assert masks == prune(net, SynFlow(path="plain"), **options)
    assert found[0]._is_whole


def test_blocks_are_for_numbers_whose_rounding_is_bounded() -> None:
    build, example = NETS["mlp"]
    with seen() as found:
        prune(build(), SynFlow(rounds=20, activations="own"), density=0.05, example_input=example)
    assert found[0]._is_whole


@pytest.mark.parametrize("name", NETS)
def test_blocks_of_float32_keep_the_budget_and_what_a_layer_is_worth(name: str) -> None:
    """Their masks may differ by rounding; nearly all of what is kept, and what each layer keeps, may not."""
    build, example = NETS[name]
    options: dict[str, Any] = {"density": 0.05, "rounds": 30, "example_input": example}
    with seen() as found:
        masks = prune(build(), SynFlow(path="fast", precision="float32"), **options)
    exact = prune(build(), SynFlow(path="plain"), **options)
    assert not found[0]._is_whole
    assert found[0].num_again == 0
    assert masks.num_kept == exact.num_kept
    for layer, density in exact.layer_densities().items():
        assert masks.layer_densities()[layer] == pytest.approx(density, rel=0.2, abs=2 / masks[layer].numel())
