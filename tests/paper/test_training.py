from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn

from prunelab.paper.collapse import least_kept
from prunelab.paper.training import Training, shown_epochs, train_epoch, training_conservation


def quiet(text: str) -> None:
    pass


def test_one_step_by_hand():
    """Logits 0, 0 and label 0: loss ln 2, gradient -.5 and .5."""
    net = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(net.weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    loss, accuracy = train_epoch(net, optimizer, [(torch.ones(1, 1), torch.tensor([0]))])
    assert (loss, accuracy) == (pytest.approx(log(2)), 1)
    assert net.weight.flatten().tolist() == [0.5, -0.5]


def test_epochs_that_are_shown():
    assert shown_epochs(40) == [0, 1, 2, 5, 10, 20, 40]
    assert shown_epochs(1) == [0, 1]


def test_slow_training_without_decay_adds_the_same_to_every_layer(subject):
    """Gradient flow: the growth of the layers' sums of squares is equal, so that of their means has slope -1."""
    before = [parameter.clone() for parameter in subject.net.parameters()]
    result = training_conservation(subject, [Training(1e-4, 0.0)], 4, 128, quiet)
    assert all(torch.equal(*pair) for pair in zip(before, subject.net.parameters(), strict=True))
    last = [row for row in result.rows if row["epoch"] == 4]
    assert last[0]["slope_of_growth"] == pytest.approx(-1, abs=0.1)
    first = [row for row in result.rows if row["epoch"] == 0]
    assert [row["mean_square"] for row in first] == pytest.approx([2 / 192, 2 / 100, 2 / 100], rel=0.1)
    assert [row["growth"] for row in first] == [0, 0, 0]
    magnitudes = {name: subject.net.get_parameter(name).detach().abs() for name in subject.dense}
    assert first[0]["critical_compression"] == 30_200 / least_kept(magnitudes)[0]


def test_decay_rebalances(subject):
    """With only decay the sums of squares fade alike and the slope stays; training adds what is equal for all."""
    trainings = [Training(0.05, 0.05), Training(1e-12, 0.0)]
    result = training_conservation(subject, trainings, 3, 32, quiet)
    slopes = {(row["training"], row["epoch"]): row["slope"] for row in result.rows}
    decays, stays = map(str, trainings)
    assert slopes[decays, 3] < slopes[decays, 0] - 0.1
    assert slopes[stays, 3] == pytest.approx(slopes[stays, 0], abs=1e-6)
    assert len(result.rows) == 2 * 4 * 3


def test_from_smaller_weights_training_alone_rebalances(subject):
    """The same sum of squares added to every layer: soon it is most of what is there, if little was."""
    trainings = [Training(0.01, 0.0), Training(0.01, 0.0, scale=0.3)]
    result = training_conservation(subject, trainings, 4, 32, quiet)
    rows = {(row["training"], row["epoch"]): row for row in result.rows if row["layer_size"] == 19_200}
    usual, smaller = map(str, trainings)
    assert rows[smaller, 0]["mean_square"] == pytest.approx(0.09 * rows[usual, 0]["mean_square"])
    assert rows[smaller, 0]["slope"] == pytest.approx(rows[usual, 0]["slope"])
    assert rows[smaller, 4]["slope"] < rows[usual, 4]["slope"] - 0.05
