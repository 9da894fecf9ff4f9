from __future__ import annotations

from dataclasses import replace
from math import isnan

import pytest
import torch
from torch import nn

from prunelab.models import resnet20
from prunelab.paper.conservation import SCORED, conservation, log_slope, residuals, unit_sums
from prunelab.pruning import PruningError, score


def quiet(text: str) -> None:
    pass


@pytest.fixture
def two_layers() -> nn.Sequential:
    """W1 = [[1, -2], [3, .5]], W2 = [[2, -1]]."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1, -2], [3, 0.5]]))
        net[2].weight.copy_(torch.tensor([[2, -1]]))
    return net


def test_units_by_hand(two_layers):
    """SynFlow scores [[2, 4], [3, .5]] and [[6, 3.5]]: 6 in, 6 out and 3.5 in, 3.5 out. |w|: 3 in, 2 out; 3.5, 1."""
    found = {}
    for name in ("synflow", "magnitude"):
        scores = score(two_layers, SCORED[name], example_input=torch.zeros(1, 2))
        ((layer, incoming, outgoing, absolute),) = unit_sums(two_layers, scores)
        assert layer == "0.weight"
        found[name] = (incoming.tolist(), outgoing.tolist(), residuals(incoming, outgoing, absolute).tolist())
    assert found["synflow"] == ([6, 3.5], [6, 3.5], [0, 0])
    assert found["magnitude"] == ([3, 3.5], [2, 1], pytest.approx([1 / 5, 2.5 / 4.5]))


def test_channels_that_a_linear_layer_sees_at_several_places():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 1))
    scores = {"0.weight": torch.tensor([10.0, -20]).view(2, 1, 1, 1), "2.weight": torch.arange(1.0, 9).view(1, 8)}
    ((_, incoming, outgoing, absolute),) = unit_sums(net, scores)
    assert (incoming.tolist(), outgoing.tolist(), absolute.tolist()) == ([10, -20], [10, 26], [20, 46])


def test_a_network_with_branches_has_no_units_in_a_row():
    net = resnet20()
    with pytest.raises(PruningError, match="a chain, such as"):
        next(unit_sums(net, dict(net.named_parameters())))


def test_units_without_scores_are_conserved():
    assert residuals(torch.zeros(1), torch.zeros(1), torch.zeros(1)).tolist() == [0]


@pytest.mark.parametrize(
    ("y", "slope"),
    [
        ([100, 10, 1], -1),
        ([-100, 10, -1], -1),
        ([7, 7, 7], 0),
        ([1, 0, 10_000], 2),  # a 0 is left out
        ([1, 10**0.5, 10], 0.5),
    ],
)
def test_slope_by_hand(y, slope):
    assert log_slope([1, 10, 100], y) == pytest.approx(slope)


def test_slope_of_nothing():
    assert isnan(log_slope([5, 5], [1, 2]))
    assert isnan(log_slope([1, 2], [0, 3]))


def test_what_is_conserved_and_what_is_not(subject):
    for network in ("mlp", "conv2"):
        units, layers = conservation(replace(subject, network=network, samples_per_class=1), list(SCORED), quiet)
        worst = {name: max(row["residual"] for row in units.rows if row["criterion"] == name) for name in SCORED}
        assert worst["synflow"] < 1e-13
        assert worst["saliency"] < 1e-13
        assert min(worst[name] for name in ("random", "magnitude", "snip")) > 0.1
        slopes = {row["criterion"]: row["slope"] for row in layers.rows}
        assert slopes["synflow"] == pytest.approx(-1, abs=1e-12)
        assert slopes["saliency"] == pytest.approx(-1, abs=1e-9)
        assert slopes["random"] == pytest.approx(0, abs=0.05)
        assert -0.7 < slopes["magnitude"] < 0  # |w| is as 1 / sqrt(inputs)
        totals = [row["total_score"] for row in layers.rows if row["criterion"] == "synflow"]
        assert totals == pytest.approx([totals[0]] * len(totals), rel=1e-12)
