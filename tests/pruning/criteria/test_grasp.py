from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian
from torch.nn.functional import cross_entropy

from prunelab.pruning import Masks, prune, score
from prunelab.pruning.criteria import Grasp, grasp

from ..nets import chain, dense, mlp, random_masks, samples, vgg_like, with_dropout


def half_square(outputs: Tensor, target: Tensor) -> Tensor:
    return ((outputs - target) ** 2).mean() / 2


X = torch.tensor([[1.0, 1, 2]], dtype=torch.float64)
QUADRATIC = {"example_input": X, "batches": [(X, torch.zeros(1, 1, dtype=torch.float64))], "loss": half_square}


def test_quadratic_loss_by_hand() -> None:
    """w = (1, 2, -1), Hg = (6, 6, 12): w Hg = (6, 12, -12), so w3 goes first and w2 is kept longest."""
    net, criterion = chain([[1, 2, -1]]), Grasp(temperature=1.0)
    assert score(net, criterion, **QUADRATIC)["0.weight"].tolist() == [[6, 12, -12]]
    two = prune(net, criterion, density=2 / 3, **QUADRATIC)
    one = prune(net, criterion, density=1 / 3, **QUADRATIC)
    assert two["0.weight"].tolist() == [[True, True, False]]
    assert one["0.weight"].tolist() == [[False, True, False]]


def test_scores_sum_to_half_the_slope_of_the_gradient_flow() -> None:
    """d/da of |g((1 + a) w)|^2 at a = 0 is 2 w.Hg = 12."""
    w = torch.tensor([1.0, 2, -1], dtype=torch.float64)

    def flow(a: Tensor) -> Tensor:
        gradient = X[0] * ((1 + a) * w @ X[0])
        return gradient @ gradient

    slope = grad(flow)(torch.zeros((), dtype=torch.float64)).item()
    total = score(chain([[1, 2, -1]]), Grasp(temperature=1.0), **QUADRATIC)["0.weight"].sum().item()
    assert slope == 12 == 2 * total


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("density", [1.0, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_explicit_hessian(seed: int, density: float, temperature: float) -> None:
    """w * H g over the kept weights, g and H of the loss of outputs / temperature; several batches count as one."""
    net, (inputs, labels) = mlp(3, 4, 3, seed=seed), samples(7, 3, seed=seed)
    masks = dense(net) if density == 1 else random_masks(net, density, seed)
    names = list(masks)
    shapes = [masks[name].shape for name in names]
    flat_mask = torch.cat([masks[name].flatten() for name in names])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return cross_entropy(functional_call(net, weights, (inputs,)) / temperature, labels)

    flat = torch.cat([net.get_parameter(name).detach().flatten() for name in names]) * flat_mask
    expected = flat * (hessian(loss)(flat) @ (grad(loss)(flat) * flat_mask))
    batches = [(inputs[:5], labels[:5]), (inputs[5:], labels[5:])]
    scores = score(net, Grasp(temperature=temperature), example_input=inputs[:1], masks=masks, batches=batches)
    found = torch.cat([scores[name].flatten() for name in names])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_removing_the_highest_score_lowers_the_gradient_flow_most() -> None:
    """To first order: moving a weight by -h w changes |g|^2 by -2 h w (Hg)."""
    net, (inputs, labels) = mlp(3, 4, 3, activation=torch.nn.Tanh), samples(9, 3)
    scores = score(net, Grasp(temperature=1.0), example_input=inputs[:1], batches=[(inputs, labels)])

    def flow(name: str, index: int, factor: float) -> float:
        weights = {n: net.get_parameter(n).detach().clone() for n in scores}
        weights[name].view(-1)[index] *= factor
        gradients = grad(lambda w: cross_entropy(functional_call(net, w, (inputs,)), labels))(weights)
        return sum(g.square().sum().item() for g in gradients.values())

    for name, values in scores.items():
        for index, value in enumerate(values.flatten().tolist()):
            change = (flow(name, index, 1 - 1e-5) - flow(name, index, 1 + 1e-5)) / 2e-5
            assert change == pytest.approx(-2 * value, rel=1e-4, abs=1e-8)


CHUNKS = [(12,), (6, 6), (5, 7), (1, 11)]


def in_chunks(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    inputs, labels = samples(12, 2, 6, 6)
    return list(zip(inputs.split(list(sizes)), labels.split(list(sizes)), strict=True))


@pytest.mark.parametrize("sizes", CHUNKS[1:])
def test_independent_of_chunks_on_running_statistics(sizes: tuple[int, ...]) -> None:
    net, criterion = with_dropout(), Grasp(batch_norm="running")
    whole = score(net, criterion, example_input=torch.zeros(1, 2, 6, 6), batches=in_chunks(CHUNKS[0]))
    parts = score(net, criterion, example_input=torch.zeros(1, 2, 6, 6), batches=in_chunks(sizes))
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, rtol=1e-9, atol=1e-9 * values.abs().max().item())


def test_chunks_matter_on_batch_statistics() -> None:
    net = with_dropout()
    whole = score(net, grasp, example_input=torch.zeros(1, 2, 6, 6), batches=in_chunks((12,)))["0.weight"]
    parts = score(net, grasp, example_input=torch.zeros(1, 2, 6, 6), batches=in_chunks((6, 6)))["0.weight"]
    assert (whole - parts).norm() > 0.01 * whole.norm()


def test_defaults_are_the_authors() -> None:
    assert Grasp() == Grasp(rounds=1, temperature=200.0, batch_norm="batch")


def test_temperature_changes_the_masks() -> None:
    net, batches = vgg_like(), [samples(12, 2, 6, 6)]
    options = {"density": 0.3, "example_input": batches[0][0][:1], "batches": batches}
    assert prune(net, Grasp(temperature=1.0), **options) != prune(net, Grasp(temperature=200.0), **options)


def test_pruned_weights_score_zero() -> None:
    net, masks, batches = vgg_like(), random_masks(vgg_like()), [samples(12, 2, 6, 6)]
    scores = score(net, grasp, example_input=batches[0][0][:1], masks=masks, batches=batches)
    assert all(torch.count_nonzero(values[~masks[name]]) == 0 for name, values in scores.items())


def test_saturation_warns_at_the_temperature_that_is_used() -> None:
    """Logits of about 1e5 saturate even divided by 200; of about 10, they do not."""
    net, batches = mlp(3, 4, 3), [samples(9, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(net, grasp, example_input=torch.zeros(1, 3), batches=batches)
    with torch.no_grad():
        net[2].weight.mul_(1e5)
    with pytest.warns(UserWarning, match="saturated"):
        score(net, grasp, example_input=torch.zeros(1, 3), batches=batches)


def test_both_passes_see_the_same_images() -> None:
    """Read twice, in the same order."""
    seen: list[int] = []

    class Batches:
        def __iter__(self):
            for seed in range(3):
                seen.append(seed)
                yield samples(4, 3, seed=seed)

    masks = prune(mlp(3, 4, 3), grasp, density=0.5, example_input=torch.zeros(1, 3), batches=Batches())
    assert isinstance(masks, Masks)
    assert seen == [0, 0, 1, 2, 0, 1, 2]  # one look whether there is any
