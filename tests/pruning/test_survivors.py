from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunelab.pruning import Masks, PruningError, keep_highest
from prunelab.pruning.survivors import FixedSurvivors, SurvivorLists

SIZES = [7, 40, 0, 53]
KINDS = [SurvivorLists, FixedSurvivors]
Kind = type[SurvivorLists] | type[FixedSurvivors]


def parts(flat: Tensor) -> dict[str, Tensor]:
    return {str(index): part for index, part in enumerate(flat.split(SIZES)) if len(part)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [2, 3, 1000], ids="{} different scores".format)
@pytest.mark.parametrize("seed", range(3))
def test_many_rounds_select_as_keep_highest_does(kind: Kind, levels: int, seed: int) -> None:
    """Scores with many ties, zeros among them; masks, zeroed weights and scores after each round."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(sum(SIZES), generator=generator, dtype=torch.float64) + 1
    kept = torch.rand(len(weights), generator=generator) < 0.9
    weights[~kept] = 0
    values, masks = weights.clone(), Masks(parts(kept))
    survivors = kind(values, kept, SIZES, masks.num_kept)
    for num_kept in (masks.num_kept, 80, 79, 79, 40, 22, 9, 2, 1):
        # halves of whole numbers, so that products with powers of two tie exactly
        gradients = torch.randint(levels, (len(weights),), generator=generator) / values.clamp(min=1)
        survivors.score(gradients.split(SIZES))
        wanted = gradients * values * torch.cat([mask.flatten() for mask in masks.values()])
        for index in range(len(SIZES)):
            assert torch.equal(survivors.scores(index), wanted.split(SIZES)[index])
        masks = keep_highest(parts(wanted), num_kept / len(weights), masks)
        survivors.drop(num_kept, weights)
        assert Masks(parts(torch.cat(survivors.kept_by_layer()))) == masks
        assert torch.equal(weights != 0, torch.cat([mask.flatten() for mask in masks.values()]))
        survivors.check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("wrong", "reason"), [(torch.inf, "inf or NaN"), (torch.nan, "inf or NaN"), (-1, "negative")])
def test_scores_that_cannot_be_ranked_are_refused(kind: Kind, wrong: float, reason: str) -> None:
    """In later rounds too; those of weights that are dropped already do not matter."""
    survivors = kind(torch.ones(10), torch.ones(10, dtype=torch.bool), [10], 10)
    survivors.score([torch.arange(10.0)])
    survivors.drop(9, torch.ones(10))
    survivors.score([torch.tensor([float(wrong), *range(9)])])
    survivors.check()

    def score() -> None:
        survivors.score([torch.tensor([0, *range(8), float(wrong)])])
        survivors.check()

    with pytest.raises(PruningError, match=reason):
        score()


def lists(scores: list[float]) -> SurvivorLists:
    survivors = SurvivorLists(torch.ones(len(scores)), torch.ones(len(scores), dtype=torch.bool), [len(scores)], 5)
    survivors.score([torch.tensor(scores, dtype=torch.float32)])
    return survivors


@pytest.mark.parametrize(
    ("scores", "num_kept", "is_sure"),
    [
        ([1, 2, 3, 4, 5], 3, True),
        ([1, 2, 2, 4, 5], 3, False),  # equal
        ([1, 2, 2.001, 4, 5], 3, False),  # nearer than a hundredth
        ([1, 1.999, 2, 4, 5], 2, True),  # those that go together may be as near as they like
        ([0, 0, 0, 4, 5], 3, True),  # zeros are zeros: the earlier positions go
        ([0, 1e-44, 2, 4, 5], 4, False),  # unless others nearly are: in another order they might be 0, and go first
        ([1e-44, 0, 2, 4, 5], 4, False),
        ([0, 1e-44, 5e-44, 4, 5], 3, False),  # numbers that small have lost digits
        ([5, 4, 3, 2, 1], 5, True),  # nothing to drop
    ],
)
def test_what_is_too_close_is_said_before_anything_is_dropped(
    scores: list[float], num_kept: int, is_sure: bool
) -> None:
    survivors, weights = lists(scores), torch.ones(5)
    assert survivors.drop(num_kept, weights, 0.01) is is_sure
    assert int(weights.sum()) == survivors.num_kept == (num_kept if is_sure else 5)
    assert survivors.drop(num_kept, weights) is True
    other = lists(scores)
    other.drop(num_kept, torch.ones(5))
    assert torch.equal(survivors.kept_by_layer()[0], other.kept_by_layer()[0])


def test_nothing_waits_for_the_device() -> None:
    """Meta tensors have no values: reading one raises."""
    survivors = FixedSurvivors(
        torch.ones(100, device="meta"), torch.ones(100, dtype=torch.bool, device="meta"), [60, 40], 100
    )
    weights = torch.ones(100, device="meta")
    for num_kept in (90, 50, 10):
        survivors.score(torch.ones(100, device="meta").split([60, 40]))
        survivors.drop(num_kept, weights)
    assert [part.shape[0] for part in survivors.kept_by_layer()] == [60, 40]
    with pytest.raises(RuntimeError, match=r"meta|Tensor.item"):
        survivors.check()


@pytest.mark.parametrize("kind", KINDS)
def test_minus_zero_is_a_score_of_zero(kind: Kind) -> None:
    survivors = kind(torch.ones(4), torch.ones(4, dtype=torch.bool), [4], 4)
    survivors.score([torch.tensor([1.0, -0.0, 0.0, 2.0])])
    survivors.drop(3, torch.ones(4))
    survivors.check()
    assert survivors.kept_by_layer()[0].tolist() == [True, False, True, True]  # of equal ones the earlier goes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_a_weight_that_is_not_finite_is_refused(kind: Kind, wrong: float) -> None:
    """Also among so many dropped ones that the lists are made anew before the first score."""
    for num_kept in (10, 3):
        values, kept = torch.ones(10), torch.arange(10) >= 10 - num_kept
        values[9] = wrong
        survivors = kind(values, kept, [10], num_kept)

        def score(survivors: SurvivorLists | FixedSurvivors = survivors) -> None:
            survivors.score([torch.ones(10)])
            survivors.check()

        with pytest.raises(PruningError, match="inf or NaN"):
            score()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_over_a_divisor(kind: Kind) -> None:
    survivors = kind(torch.full((3,), 2.0), torch.tensor([True, False, True]), [1, 2], 2)
    survivors.score([torch.tensor([3.0]), torch.tensor([5.0, 7.0])], 4.0)
    assert torch.cat([survivors.scores(0), survivors.scores(1)]).tolist() == [1.5, 0, 3.5]
