from __future__ import annotations

import itertools

import pytest

from prunelab.pruning import PruningError
from prunelab.pruning.schedules import density_at


def test_exponential_drops_the_same_share_in_every_round() -> None:
    densities = [1.0, *(density_at("exponential", 1.0, 0.01, k, 100) for k in range(1, 101))]
    shares = [after / before for before, after in itertools.pairwise(densities)]
    assert shares == pytest.approx([0.01**0.01] * 100, rel=1e-12)


def test_linear_drops_the_same_number_in_every_round() -> None:
    densities = [0.9, *(density_at("linear", 0.9, 0.1, k, 8) for k in range(1, 9))]
    steps = [before - after for before, after in itertools.pairwise(densities)]
    assert steps == pytest.approx([0.1] * 8)


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_ends_exactly_at_the_target(schedule: str) -> None:
    assert density_at(schedule, 0.7, 1 / 3, 7, 7) == 1 / 3


def test_a_layer_that_is_empty_already_stays_so() -> None:
    assert density_at("exponential", 0.0, 0.0, 1, 2) == 0
    assert density_at("exponential", 1.0, 0.0, 1, 2) == 0


def test_unknown_schedule() -> None:
    with pytest.raises(PruningError, match="cosine"):
        density_at("cosine", 1.0, 0.1, 1, 1)
