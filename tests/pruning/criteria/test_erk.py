from __future__ import annotations

import pytest
import torch

from prunelab.models import resnet20
from prunelab.pruning import prune, score
from prunelab.pruning.allocation import erk_densities
from prunelab.pruning.criteria import erk, random

from ..nets import vgg_like


def test_scores_are_those_of_random() -> None:
    net, image = vgg_like(), torch.zeros(1, 2, 6, 6)
    ours, theirs = score(net, erk, example_input=image), score(net, random, example_input=image)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_layer_counts_are_those_of_the_formula(density: float) -> None:
    """Each within one of density_l * n_l, the total exact; the scope does not change that."""
    net = resnet20()
    masks = prune(net, erk, density=density, example_input=torch.zeros(1, 3, 32, 32))
    assert masks.num_kept == int(density * masks.num_weights + 0.5)
    shapes = {name: mask.shape for name, mask in masks.items()}
    for name, goal in erk_densities(shapes, density).items():
        assert abs(masks.layer_num_kept()[name] - goal * masks[name].numel()) < 1
    assert prune(net, erk, density=density, scope="layerwise", example_input=torch.zeros(1, 3, 32, 32)) == masks
