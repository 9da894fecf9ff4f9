from __future__ import annotations

import pytest
import torch

from prunelab.pruning import Masks, prune, score
from prunelab.pruning.criteria import lamp

from ..nets import chain, mlp, random_masks


def test_three_weights_by_hand() -> None:
    """|w| = 1, 2, 3: 1 / 14, 4 / 13, 1."""
    scores = score(chain([[-2, 1, 3]]), lamp, example_input=torch.zeros(1, 3))
    torch.testing.assert_close(scores["0.weight"], torch.tensor([[4 / 13, 1 / 14, 1]], dtype=torch.float64))


def test_ties_by_position() -> None:
    """|w| = 1, 1, 1: the first over all three, the last over itself."""
    scores = score(chain([[1, -1, 1]]), lamp, example_input=torch.zeros(1, 3))
    torch.testing.assert_close(scores["0.weight"], torch.tensor([[1 / 3, 1 / 2, 1]], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_formula_by_brute_force(seed: int) -> None:
    """Pruned weights count as 0, in the sums and as scores."""
    net = mlp(6, 5, 4, seed=seed)
    masks = random_masks(net, 0.7, seed)
    scores = score(net, lamp, example_input=torch.zeros(1, 6), masks=masks)
    for name, mask in masks.items():
        weights = (net.get_parameter(name).detach() * mask).flatten().tolist()
        for u, score_u in zip(weights, scores[name].flatten().tolist(), strict=True):
            expected = u**2 / sum(v**2 for v in weights if abs(v) >= abs(u)) if u else 0
            assert score_u == pytest.approx(expected, rel=1e-12)


def test_no_layer_empties_before_all_are_down_to_one_weight() -> None:
    net = mlp(8, 8, 8, 8)
    with torch.no_grad():
        net[2].weight.mul_(1e-6)
    masks = prune(net, lamp, density=3 / 192, example_input=torch.zeros(1, 8))
    assert masks.layer_num_kept() == {"0.weight": 1, "2.weight": 1, "4.weight": 1}


def test_the_ranking_inside_a_layer_is_that_of_magnitude() -> None:
    net = mlp(10, 10)
    scores = score(net, lamp, example_input=torch.zeros(1, 10))["0.weight"].flatten()
    assert torch.equal(scores.argsort(), net[0].weight.abs().flatten().argsort())


def test_an_empty_layer_scores_zero() -> None:
    masks = Masks({"0.weight": torch.zeros(2, 2, dtype=torch.bool), "2.weight": torch.ones(1, 2, dtype=torch.bool)})
    scores = score(chain([[1, 2], [3, 4]], [[5, 6]]), lamp, example_input=torch.zeros(1, 2), masks=masks)
    assert torch.count_nonzero(scores["0.weight"]) == 0
