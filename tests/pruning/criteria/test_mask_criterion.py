from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from prunelab.pruning import Masks, PruningError, keep_highest, prune, score
from prunelab.pruning.criteria import MaskCriterion, magnitude, mask_criterion, random

from ..nets import chain, mlp, random_masks

# four weights: grew, shrank, changed its sign, did not move
FINAL = [[3.0, -1.0, 2.0, -0.5]]
INITIAL = [[2.0, -4.0, -1.0, -0.5]]


def scores_of(criterion: MaskCriterion, final: Any = FINAL, initial: Any = INITIAL, **scoring: Any) -> list[float]:
    given = {"0.weight": torch.tensor(initial, dtype=torch.float64), "0.bias": torch.zeros(1)}
    example = torch.zeros(1, len(final[0]))
    return score(chain(final), criterion, example_input=example, initial=given, **scoring)["0.weight"][0].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("large_final", [3, 1, 2, 0.5]),
        ("small_final", [-3, -1, -2, -0.5]),
        ("large_init", [2, 4, 1, 0.5]),
        ("small_init", [-2, -4, -1, -0.5]),
        ("large_init_large_final", [2, 1, 1, 0.5]),
        ("magnitude_increase", [1, -3, 1, 0]),
        ("movement", [1, 3, 3, 0]),
    ],
)
def test_four_weights_by_hand(name: Any, expected: list[float]) -> None:
    assert scores_of(MaskCriterion(score=name)) == expected


def test_alpha_weighs_final_against_initial() -> None:
    """min(a |w_f|, |w_i|) with a = 3 and .25."""
    assert scores_of(MaskCriterion(score="large_init_large_final", alpha=3)) == [2, 3, 1, 0.5]
    assert scores_of(MaskCriterion(score="large_init_large_final", alpha=0.25)) == [0.75, 0.25, 0.5, 0.125]


@pytest.mark.parametrize("alpha", [0, -1, float("nan")])
def test_alpha_is_positive(alpha: float) -> None:
    with pytest.raises(PruningError, match="alpha must be above 0"):
        MaskCriterion(alpha=alpha)


def test_sign_restrictions_by_hand() -> None:
    """Signs are + - + - and were + - - -: the third changed. By size 3 1 2 .5 the ranks are 3 1 2 0."""
    assert scores_of(MaskCriterion(sign="same")) == [4 + 3, 4 + 1, 2, 4 + 0]
    assert scores_of(MaskCriterion(sign="different")) == [3, 1, 4 + 2, 0]


def test_equal_scores_share_a_rank_and_zero_is_positive() -> None:
    """Sizes 1 1 0 0, signs + - + + and were + + + -: the second and the fourth changed."""
    same = scores_of(MaskCriterion(sign="same"), [[1, -1, 0, 0]], [[1, 1, 0, -2]])
    assert same == [2 + 1, 1, 2 + 0, 0]


def order(scores: dict[str, Tensor]) -> list[tuple[str, int]]:
    """(layer, index) from the lowest score to the highest, ties by position."""
    flat = [
        (value, number, name, index)
        for number, (name, values) in enumerate(scores.items())
        for index, value in enumerate(values.flatten().tolist())
    ]
    return [(name, index) for _, _, name, index in sorted(flat)]


@pytest.mark.parametrize("sign", ["same", "different"])
@pytest.mark.parametrize("name", ["large_final", "magnitude_increase", "movement", "random"])
def test_restricted_order_over_layers_by_brute_force(name: Any, sign: Any) -> None:
    """Sorted by (satisfies the restriction, score), all layers competing; scores 1e-14 apart stay apart."""
    net, initial = mlp(5, 4, 3), dict(mlp(5, 4, 3, seed=1).named_parameters())
    with torch.no_grad():
        net[0].weight[0, 0], net[2].weight[0, 0] = 1e3, 1e3 * (1 + 1e-15)
    make = partial(MaskCriterion, score=name)
    run = partial(score, net, example_input=torch.zeros(1, 5), initial=initial)
    free = run(make())
    pairs = {}
    for layer, values in free.items():
        final = net.get_parameter(layer).detach().flatten().tolist()
        start = initial[layer].detach().flatten().tolist()
        for index, (w_f, w_i) in enumerate(zip(final, start, strict=True)):
            satisfies = (w_f * w_i > 0) == (sign == "same")
            pairs[layer, index] = (satisfies, values.flatten()[index].item())
    assert len(set(pairs.values())) == len(pairs)  # no ties, in which any order would do
    restricted = run(make(sign=sign))
    assert order(restricted) == sorted(pairs, key=pairs.__getitem__)
    assert {values.dtype for values in restricted.values()} == {torch.float64}


def test_those_that_violate_are_kept_only_when_the_budget_demands() -> None:
    net, initial = mlp(6, 5), dict(mlp(6, 5, seed=1).named_parameters())
    kept_sign = (net[0].weight * initial["0.weight"]).detach() > 0
    run = partial(prune, net, MaskCriterion(sign="same"), example_input=torch.zeros(1, 6), initial=initial)
    count = int(kept_sign.sum())
    assert torch.equal(run(density=count / 30)["0.weight"], kept_sign)
    more = run(density=(count + 2) / 30)["0.weight"]
    left = net[0].weight.detach().abs().masked_fill(kept_sign, -1).flatten()
    assert set((more & ~kept_sign).flatten().nonzero().flatten().tolist()) == set(left.topk(2).indices.tolist())


def test_ranks_are_of_kept_weights() -> None:
    """A pruned weight, whatever it holds, moves no rank; of no kept weight at all there is none."""
    masks = Masks({"0.weight": torch.tensor([[True, False, True, True]])})
    assert scores_of(MaskCriterion(sign="same"), masks=masks) == [3 + 2, 0, 1, 3 + 0]
    nothing = Masks({"0.weight": torch.zeros(1, 4, dtype=torch.bool)})
    assert scores_of(MaskCriterion(sign="same"), masks=nothing) == [0, 0, 0, 0]


def test_in_single_precision_differences_are_not_rounded() -> None:
    """1 + 2^-23 and 2^-30: their sizes differ by something that float32 rounds to 1."""
    net = chain([[1 + 2**-23, 1.0]]).float()
    initial = {"0.weight": torch.tensor([[2**-30, 0.0]])}
    criterion = MaskCriterion(score="magnitude_increase")
    scores = score(net, criterion, example_input=torch.zeros(1, 2), initial=initial)
    assert scores["0.weight"].tolist() == [[1 + 2**-23 - 2**-30, 1.0]]


def test_large_final_is_magnitude() -> None:
    net, masks = mlp(6, 5, 4), random_masks(mlp(6, 5, 4))
    run = partial(prune, net, density=0.2, example_input=torch.zeros(1, 6), masks=masks)
    assert run(mask_criterion) == run(magnitude)


def test_random_draws_as_random_does() -> None:
    run = partial(score, mlp(6, 5, 4), example_input=torch.zeros(1, 6))
    for seed in (0, 3):
        ours = run(MaskCriterion(score="random"), generator=torch.Generator().manual_seed(seed))
        theirs = run(random, generator=torch.Generator().manual_seed(seed))
        assert all(torch.equal(ours[name], theirs[name].double()) for name in theirs)


@pytest.mark.parametrize(
    ("criterion", "knob"),
    [
        (MaskCriterion(score="large_init"), "score large_init"),
        (MaskCriterion(score="movement"), "score movement"),
        (MaskCriterion(sign="same"), "sign same"),
        (MaskCriterion(score="random", sign="different"), "sign different"),
    ],
)
def test_without_the_weights_at_initialisation_it_says_what_to_do(criterion: MaskCriterion, knob: str) -> None:
    with pytest.raises(PruningError, match=rf"mask_criterion with {knob} needs the weights at init.*tickets\.levels"):
        score(chain(FINAL), criterion, example_input=torch.zeros(1, 4))


@pytest.mark.parametrize("initial", [{}, {"0.weight": torch.zeros(4)}, {"0.weight": torch.zeros(1, 1)}])
def test_weights_at_initialisation_of_another_network_are_refused(initial: dict[str, Tensor]) -> None:
    with pytest.raises(PruningError, match=r"initialisation lack 0\.weight, or have it in another shape"):
        score(chain(FINAL), MaskCriterion(score="movement"), example_input=torch.zeros(1, 4), initial=initial)


def test_ranks_select_like_any_scores() -> None:
    """Layerwise too: in each layer the weights that kept their sign go first."""
    net, initial = mlp(8, 8, 8), dict(mlp(8, 8, 8, seed=1).named_parameters())
    scores = score(net, MaskCriterion(sign="same"), example_input=torch.zeros(1, 8), initial=initial)
    masks = keep_highest(scores, 0.25, random_masks(net, 1.0), scope="layerwise")
    for name, mask in masks.items():
        assert int(mask.sum()) == 16
        assert (net.get_parameter(name) * initial[name])[mask].min() > 0
