from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from prunelab.pruning import Masks, prune, score
from prunelab.pruning.criteria import IterativeSnip, iterative_snip, snip

from ..nets import dense, mlp, samples, vgg_like


def by_hand(net: nn.Module, batch: tuple[Tensor, Tensor], density: float, rounds: int, revive: bool) -> Masks:
    """The loops of the paper, plainly: one batch, eval mode, sorted lists."""
    net.eval()
    weights = {name: net.get_parameter(name).detach() for name in dense(net)}
    kept = {name: torch.ones_like(weight) for name, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    for k in range(1, rounds + 1):
        masked = {name: (weight * kept[name]).requires_grad_() for name, weight in weights.items()}
        cross_entropy(functional_call(net, masked, (batch[0],)), batch[1]).backward()
        saliency = torch.cat([(weights[name] * masked[name].grad).abs().flatten() for name in weights])
        if not revive:
            saliency[torch.cat([mask.flatten() for mask in kept.values()]) == 0] = -1
        best = saliency.argsort(descending=True)[: int(density ** (k / rounds) * total + 0.5)]
        flat = torch.zeros(total, dtype=torch.float64)
        flat[best] = 1
        parts = flat.split([weight.numel() for weight in weights.values()])
        kept = {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}
    return Masks({name: mask > 0 for name, mask in kept.items()})


@pytest.mark.parametrize("density", [0.3, 0.05])
@pytest.mark.parametrize("rounds", [1, 4, 10])
@pytest.mark.parametrize(
    ("net", "batch"),
    [(mlp(4, 8, 6, 3), samples(10, 4)), (vgg_like(), samples(10, 2, 6, 6))],
    ids=["mlp", "vgg"],
)
def test_equals_the_plain_loop(net: nn.Module, batch: tuple[Tensor, Tensor], rounds: int, density: float) -> None:
    masks = prune(net, iterative_snip, density=density, rounds=rounds, example_input=batch[0][:1], batches=[batch])
    assert masks == by_hand(net, batch, density, rounds, revive=False)


def test_one_round_is_snip_and_ten_are_not() -> None:
    net, batch = vgg_like(), samples(10, 2, 6, 6)
    options = {"density": 0.1, "example_input": batch[0][:1], "batches": [batch]}
    once = prune(net, snip, **options)
    assert prune(net, iterative_snip, rounds=1, **options) == once
    assert prune(net, iterative_snip, **options) != once


def test_signed() -> None:
    net, batch = vgg_like(), samples(10, 2, 6, 6)
    signed = score(net, IterativeSnip(signed=True), example_input=batch[0][:1], batches=[batch])
    assert any((values < 0).any() for values in signed.values())
