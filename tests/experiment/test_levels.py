"""Densities of levels against the published ones, and what cannot be."""

from __future__ import annotations

import math

import pytest

from prunelab.experiment.levels import Tickets, density_of_whole
from prunelab.pruning import PruningError
from prunelab.pruning.allocation import round_half_up

LENET = {"fc1.weight": 784 * 300, "fc2.weight": 300 * 100, "classifier.weight": 100 * 10}


def test_a_fifth_of_the_weights_per_level() -> None:
    """Sparsities that iterative pruning papers print (in %)."""
    published = [20, 36, 48.8, 59, 67.2, 73.8, 79, 83.2, 86.6, 89.3, 91.4, 93.1, 94.5, 95.6, 96.5, 97.2, 97.7, 98.2]
    densities = Tickets(levels=18, density_per_level=0.8).pruned_densities(None)
    assert [round(100 * (1 - density), 1) for density in densities] == published


def test_lenet_with_its_output_layer_at_half_rate() -> None:
    """Weights remaining in figure 3 of Frankle, Carbin 2019 (in %)."""
    published = {3: 51.28, 7: 21.07, 9: 13.52, 12: 6.95, 15: 3.58, 18: 1.85, 20: 1.19}
    tickets = Tickets(levels=20, density_per_level=0.8, layer_rates={"classifier*": 0.5})
    levels = tickets.layer_allocations(None, LENET)
    assert levels is not None
    found = {k: round(100 * density_of_whole(levels[k - 1], LENET), 2) for k in published}
    assert found == published
    assert levels[2]["classifier.weight"] == pytest.approx(0.9**3)
    assert levels[2]["fc1.weight"] == pytest.approx(0.8**3)


@pytest.mark.parametrize(
    "tickets", [Tickets(levels=5), Tickets(densities=[0.6, 0.3, 0.3, 0.15])], ids=["target", "list"]
)
def test_layer_rates_reach_the_density_of_each_level(tickets: Tickets) -> None:
    rated = Tickets(levels=tickets.levels, densities=tickets.densities, layer_rates={"classifier*": 0.5, "fc2*": 0})
    densities = rated.pruned_densities(None if tickets.densities else 0.2)
    levels = rated.layer_allocations(0.2, LENET)
    assert levels is not None
    before = dict.fromkeys(LENET, 1.0)
    for density, level in zip(densities, levels, strict=True):
        whole = sum(level[name] * size for name, size in LENET.items()) / sum(LENET.values())
        assert whole == pytest.approx(density, rel=1e-12)
        assert level["fc2.weight"] == 1
        pruned = {name: 1 - level[name] / before[name] for name in LENET}
        assert pruned["classifier.weight"] == pytest.approx(pruned["fc1.weight"] / 2, abs=1e-12)
        before = level


def test_a_target_is_reached_in_equal_factors() -> None:
    densities = Tickets(levels=4).pruned_densities(0.0081)
    assert densities == pytest.approx([0.3, 0.09, 0.027, 0.0081])
    assert round_half_up(densities[-1], 10_000) == 81
    assert Tickets().pruned_densities(0.1) == [0.1]
    assert Tickets(densities=[0.5, 0.5, 0.1]).pruned_densities(None) == [0.5, 0.5, 0.1]


def test_without_rates_there_are_no_layer_budgets() -> None:
    assert Tickets(levels=3, density_per_level=0.8).layer_allocations(None, LENET) is None


def test_first_matching_pattern_counts() -> None:
    tickets = Tickets(levels=1, density_per_level=0.8, layer_rates={"fc1*": 0, "fc*": 2})
    levels = tickets.layer_allocations(None, LENET)
    assert levels == [{"fc1.weight": 1.0, "fc2.weight": pytest.approx(0.6), "classifier.weight": pytest.approx(0.8)}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"densities": [1.5, 0.5]}, "1.5"),
        ({"densities": [0.2, 0.5]}, "grow from 0.2 to 0.5"),
        ({"densities": []}, "empty"),
        ({"densities": [0.5, 0.2], "levels": 3}, "levels is 3 but there are 2"),
        ({"density_per_level": 0.8}, "goes with tickets.levels"),
        ({"density_per_level": 1.2, "levels": 2}, "in \\(0, 1\\]"),
        ({"density_per_level": 0.0, "levels": 2}, "in \\(0, 1\\]"),
        ({"levels": 0}, "at least 1"),
        ({"rewind_step": "2epochs"}, "500it, or epochs such as 2ep, got 2epochs"),
        ({"rewind_step": -1}, "500it"),
        ({"levels": 2, "density_per_level": 0.4, "layer_rates": {"fc*": 2.0}}, "no weight would be left"),
        ({"levels": 2, "density_per_level": 0.4, "layer_rates": {"fc*": -1.0}}, "fc\\* cannot have rate"),
    ],
)
def test_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        Tickets(**settings)  # type: ignore[arg-type]


def test_refused_with_a_network() -> None:
    with pytest.raises(PruningError, match="nowhere\\* matches no prunable layer"):
        Tickets(levels=2, layer_rates={"nowhere*": 0.5}).layer_allocations(0.5, LENET)
    with pytest.raises(PruningError, match="cannot be reached at these rates"):
        Tickets(levels=1, layer_rates={"fc1*": 0}).layer_allocations(0.1, LENET)
    with pytest.raises(PruningError, match="a density to reach"):
        Tickets(levels=2).pruned_densities(None)
    assert math.isclose(Tickets(levels=1).pruned_densities(0.3)[0], 0.3)
