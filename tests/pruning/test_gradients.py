from __future__ import annotations

import gc
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

from prunelab.pruning import Scoring
from prunelab.pruning.gradients import hessian_vector_product, loss_gradient, masked_weights, scoring_loss

from .nets import chain, dense, mlp, random_masks, samples, vgg_like, with_dropout

Batches = list[tuple[Tensor, Tensor]]


def scoring_of(net: nn.Module, batches: Batches, density: float | None = None) -> Scoring:
    masks = dense(net) if density is None else random_masks(net, density)
    return Scoring(net, masks, batches[0][0][:1], batches=batches)


def chunks(batch: tuple[Tensor, Tensor], *sizes: int) -> Batches:
    return list(zip(batch[0].split(list(sizes)), batch[1].split(list(sizes)), strict=True))


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], rel: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rel, atol=rel * b[name].detach().abs().max().item())


def loss_at(net: nn.Module, weights: dict[str, Tensor], batch: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """The loss by plain means: eval mode, one batch."""
    return cross_entropy(functional_call(net.eval(), weights, (batch[0],)) / temperature, batch[1])


@pytest.mark.parametrize("density", [None, 0.6])
def test_gradient_is_that_of_autograd_at_the_masked_weights(density: float | None) -> None:
    net, batch = vgg_like(), samples(6, 2, 6, 6)
    scoring = scoring_of(net, [batch], density)
    weights = masked_weights(scoring)
    expected = torch.autograd.grad(loss_at(net, weights, batch, 1.0), list(weights.values()))
    assert_close(loss_gradient(scoring), dict(zip(weights, expected, strict=True)))


def test_gradient_equals_finite_differences() -> None:
    net, batch = mlp(3, 4, 3, activation=nn.Tanh), samples(5, 3)
    gradient = loss_gradient(scoring_of(net, [batch]))
    step = 1e-6
    for name, values in gradient.items():
        for index in range(values.numel()):
            losses = []
            for sign in (1, -1):
                moved = net.get_parameter(name).detach().clone()
                moved.view(-1)[index] += sign * step
                losses.append(loss_at(net, {name: moved}, batch, 1.0).item())
            assert values.view(-1)[index].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("sizes", [(128, 128, 128, 128), (500, 12), (1, 511)])
def test_one_batch_of_512_equals_its_chunks(sizes: tuple[int, ...]) -> None:
    """Also chunks of unequal size: every sample counts the same."""
    net, batch = with_dropout(), samples(512, 2, 6, 6)
    whole = loss_gradient(scoring_of(net, [batch]))
    assert_close(loss_gradient(scoring_of(net, chunks(batch, *sizes))), whole, rel=1e-12)
    product = hessian_vector_product(scoring_of(net, [batch]), whole, batch_norm="running", temperature=2.0)
    parts = hessian_vector_product(scoring_of(net, chunks(batch, *sizes)), whole, batch_norm="running", temperature=2.0)
    assert_close(parts, product, rel=1e-12)


def test_with_batch_statistics_chunks_matter() -> None:
    net, batch = with_dropout(), samples(12, 2, 6, 6)
    whole = loss_gradient(scoring_of(net, [batch]), batch_norm="batch")["9.weight"]
    parts = loss_gradient(scoring_of(net, chunks(batch, 6, 6)), batch_norm="batch")["9.weight"]
    assert (whole - parts).norm() > 0.01 * whole.norm()


def test_dropout_is_off_with_either_statistics() -> None:
    net, batch = with_dropout().train(), samples(12, 2, 6, 6)
    for batch_norm in ("running", "batch"):
        first = loss_gradient(scoring_of(net, [batch]), batch_norm=batch_norm)
        assert_close(loss_gradient(scoring_of(net, [batch]), batch_norm=batch_norm), first, rel=1e-15)


def test_temperature_divides_the_outputs() -> None:
    net, batch = mlp(3, 4, 3), samples(5, 3)
    weights = masked_weights(scoring_of(net, [batch]))
    expected = torch.autograd.grad(loss_at(net, weights, batch, 7.0), list(weights.values()))
    gradient = loss_gradient(scoring_of(net, [batch]), temperature=7.0)
    assert_close(gradient, dict(zip(weights, expected, strict=True)))


class OneAtATime:
    """Batches that are made when they are read, and what is alive then."""

    def __init__(self, batch: tuple[Tensor, Tensor], number: int, look: Callable[[], Any]) -> None:
        self.batch, self.number, self.look = batch, number, look
        self.seen: list[Any] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.number):
            self.seen.append(self.look())
            yield self.batch[0].clone(), self.batch[1].clone()


class Saved:
    """What a graph keeps of a forward pass, for the backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
@pytest.mark.parametrize("second_order", [False, True])
def test_one_batch_at_a_time_is_in_memory(second_order: bool, batch_norm: Any) -> None:
    """When a batch is read nothing of an earlier one is left: no graph, and of weight-sized tensors as many."""
    net = with_dropout()
    shapes = {weight.shape for weight in masked_weights(scoring_of(net, [samples(4, 2, 6, 6)])).values()}
    saved: weakref.WeakSet[Saved] = weakref.WeakSet()
    num_saved = 0

    def pack(tensor: Tensor) -> Saved:
        nonlocal num_saved
        saved.add(kept := Saved(tensor))
        num_saved += 1
        return kept

    def alive() -> tuple[int, int]:
        # `type`, not isinstance: the latter wakes lazy objects of other libraries
        found = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]
        return len(saved), sum(tensor.shape in shapes for tensor in found)

    gc.collect()  # what other tests left
    batches = OneAtATime(samples(4, 2, 6, 6), 5, alive)
    scoring = Scoring(net, dense(net), torch.zeros(1, 2, 6, 6), batches=batches)
    vector = masked_weights(scoring)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        if second_order:
            hessian_vector_product(scoring, vector, batch_norm=batch_norm, temperature=1.0)
        else:
            loss_gradient(scoring, batch_norm=batch_norm)
    assert num_saved > 50
    assert len(batches.seen) == 5
    assert {graphs for graphs, _ in batches.seen} == {0}
    assert len({tensors for _, tensors in batches.seen}) == 1


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("density", [None, 0.6])
def test_hessian_vector_product_equals_the_explicit_hessian(density: float | None, temperature: float) -> None:
    net, batch = mlp(3, 4, 3, activation=nn.Tanh), samples(6, 3)
    scoring = scoring_of(net, chunks(batch, 4, 2), density)
    weights = {name: weight.detach() for name, weight in masked_weights(scoring).items()}
    generator = torch.Generator().manual_seed(3)
    vector = {n: torch.randn(w.shape, generator=generator, dtype=torch.float64) for n, w in weights.items()}
    second = hessian(lambda w: loss_at(net, w, batch, temperature))(weights)
    expected = {
        n: sum(torch.tensordot(second[n][m], vector[m], dims=vector[m].dim()) for m in weights) for n in weights
    }
    product = hessian_vector_product(scoring, vector, batch_norm="running", temperature=temperature)
    assert_close(product, expected)


def test_quadratic_loss_by_hand() -> None:
    """L = (w.x - y)^2 / 2, w = (1, 2, -1), x = (1, 1, 2), y = 0: L = .5, g = (1, 1, 2), Hg = x (x.g) = (6, 6, 12)."""
    net = chain([[1, 2, -1]])
    scoring = Scoring(
        net,
        dense(net),
        torch.zeros(1, 3),
        batches=[(torch.tensor([[1.0, 1, 2]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))],
        loss=lambda outputs, target: ((outputs - target) ** 2).mean() / 2,
    )
    gradient = loss_gradient(scoring)
    assert scoring_loss(scoring) == 0.5
    assert gradient["0.weight"].tolist() == [[1, 1, 2]]
    product = hessian_vector_product(scoring, gradient, batch_norm="running", temperature=1.0)
    assert product["0.weight"].tolist() == [[6, 6, 12]]


def test_scoring_loss_is_the_mean_over_samples() -> None:
    net, batch = vgg_like(), samples(7, 2, 6, 6)
    expected = cross_entropy(net.eval()(batch[0]), batch[1]).item()
    assert scoring_loss(scoring_of(net, [batch])) == pytest.approx(expected, rel=1e-12)
    assert scoring_loss(scoring_of(net, chunks(batch, 2, 5))) == pytest.approx(expected, rel=1e-12)


def test_a_weight_that_no_output_depends_on_has_gradient_zero() -> None:
    net = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)}).double()
    net.forward = lambda x: net["used"](x)
    gradient = loss_gradient(scoring_of(net, [samples(4, 2, num_classes=2)]))
    assert torch.count_nonzero(gradient["unused.weight"]) == 0
    assert torch.count_nonzero(gradient["used.weight"]) > 0


def test_saturated_loss_warns_and_says_what_mends_it() -> None:
    """A loss above 10 ln(classes): here logits of about a thousand."""
    net = mlp(3, 4, 3)
    with torch.no_grad():
        net[2].weight.mul_(1000)
    scoring = scoring_of(net, [samples(6, 3)])
    assert scoring_loss(scoring) > 10 * math.log(3)
    with pytest.warns(UserWarning, match=r"saturated: .* among 3 classes.*batch_norm"):
        loss_gradient(scoring)


def test_no_warning_otherwise() -> None:
    scoring = scoring_of(mlp(3, 4, 3), [samples(6, 3)])
    assert scoring_loss(scoring) < 10 * math.log(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_gradient(scoring)
        hessian_vector_product(scoring, loss_gradient(scoring), batch_norm="running", temperature=1.0)
