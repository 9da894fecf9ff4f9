from __future__ import annotations

import pytest
import torch
from torch import nn

from prunelab.pruning import prune, score
from prunelab.pruning.criteria import random

from ..nets import mlp


def test_scores_are_uniform() -> None:
    net = mlp(100, 100, 10)
    scores = torch.cat([values.flatten() for values in score(net, random, example_input=torch.zeros(1, 100)).values()])
    assert 0 <= scores.min() < 0.001 < 0.999 < scores.max() < 1
    assert abs(scores.mean() - 0.5) < 4 * (1 / 12 / len(scores)) ** 0.5


@pytest.mark.parametrize("seed", [0, 7])
def test_scores_are_independent_of_weights_that_come_from_the_same_seed(seed: int) -> None:
    """A run has one seed: the network's weights and the generator of the scores both start from it."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(100, 100, bias=False), nn.ReLU(), nn.Linear(100, 100, bias=False))
    scores = score(net, random, example_input=torch.zeros(1, 100), generator=torch.Generator().manual_seed(seed))
    for name, values in scores.items():
        weight = net.get_parameter(name).detach()
        for quantity in (weight, weight.abs()):
            correlation = torch.corrcoef(torch.stack([values.flatten(), quantity.flatten()]))[0, 1]
            assert abs(correlation) < 4 / values.numel() ** 0.5


def test_layers_get_different_draws() -> None:
    scores = score(mlp(20, 20, 20), random, example_input=torch.zeros(1, 20))
    assert not torch.equal(scores["0.weight"], scores["2.weight"])


def test_layer_counts_fluctuate_globally_and_are_exact_layerwise() -> None:
    net = mlp(30, 30, 30, 30)

    def counts(scope: str, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        masks = prune(net, random, density=0.5, scope=scope, example_input=torch.zeros(1, 30), generator=generator)
        return list(masks.layer_num_kept().values())

    assert counts("layerwise", 0) == counts("layerwise", 1) == [450, 450, 450]
    assert counts("global", 0) != counts("global", 1)
    assert sum(counts("global", 0)) == 1350


def test_drawing_moves_the_generator_on() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        score(mlp(5, 5), random, example_input=torch.zeros(1, 5), generator=generator)["0.weight"] for _ in range(2)
    )
    assert not torch.equal(first, second)
