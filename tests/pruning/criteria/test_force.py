from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from prunelab.pruning import Masks, prune, score
from prunelab.pruning.criteria import force, iterative_snip, snip

from ..nets import dense, mlp, random_masks, samples, vgg_like


def by_hand(net: nn.Module, batch: tuple[Tensor, Tensor], density: float, rounds: int) -> Masks:
    """The loop of the paper, plainly: gradients of the pruned network, weights of the full one, all compete again."""
    net.eval()
    names = list(dense(net))
    weights = [net.get_parameter(name).detach() for name in names]
    kept = [torch.ones_like(weight) for weight in weights]
    for k in range(1, rounds + 1):
        masked = [(weight * mask).requires_grad_() for weight, mask in zip(weights, kept, strict=True)]
        loss = cross_entropy(functional_call(net, dict(zip(names, masked, strict=True)), (batch[0],)), batch[1])
        gradients = torch.autograd.grad(loss, masked)
        saliency = torch.cat([(w * g).abs().flatten() for w, g in zip(weights, gradients, strict=True)])
        flat = torch.zeros_like(saliency)
        flat[saliency.argsort(descending=True)[: int(density ** (k / rounds) * len(saliency) + 0.5)]] = 1
        parts = flat.split([weight.numel() for weight in weights])
        kept = [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
    return Masks({name: mask > 0 for name, mask in zip(names, kept, strict=True)})


@pytest.mark.parametrize("density", [0.3, 0.05])
@pytest.mark.parametrize("rounds", [1, 4, 10])
@pytest.mark.parametrize(
    ("net", "batch"),
    [(mlp(4, 8, 6, 3), samples(10, 4)), (vgg_like(), samples(10, 2, 6, 6))],
    ids=["mlp", "vgg"],
)
def test_equals_the_plain_loop(net: nn.Module, batch: tuple[Tensor, Tensor], rounds: int, density: float) -> None:
    masks = prune(net, force, density=density, rounds=rounds, example_input=batch[0][:1], batches=[batch])
    assert masks == by_hand(net, batch, density, rounds)


def test_pruned_weights_are_scored_by_what_they_would_do() -> None:
    """The weight of the full network times the gradient where it stands at 0."""
    net, masks, batch = vgg_like(), random_masks(vgg_like()), samples(10, 2, 6, 6)
    scores = score(net, force, example_input=batch[0][:1], masks=masks, batches=[batch])
    pruned = torch.cat([values[~masks[name]] for name, values in scores.items()])
    assert (pruned > 0).float().mean() > 0.5
    kept = score(net, iterative_snip, example_input=batch[0][:1], masks=masks, batches=[batch])
    assert all(torch.equal(values[masks[name]], kept[name][masks[name]]) for name, values in scores.items())


def test_one_round_is_snip() -> None:
    net, batch = vgg_like(), samples(10, 2, 6, 6)
    options = {"density": 0.1, "rounds": 1, "example_input": batch[0][:1], "batches": [batch]}
    assert prune(net, force, **options) == prune(net, snip, **options)
