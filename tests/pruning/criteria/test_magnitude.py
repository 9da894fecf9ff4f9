from __future__ import annotations

import torch

from prunelab.pruning import prune, score
from prunelab.pruning.criteria import Magnitude, magnitude

from ..nets import chain, two_by_two

ONES = torch.ones(1, 2)


def test_absolute_values() -> None:
    scores = score(two_by_two(), magnitude, example_input=ONES)
    assert scores["0.weight"].tolist() == [[1, 2], [3, 0.5]]
    assert scores["2.weight"].tolist() == [[2, 1]]


def test_normalised_by_the_sum_of_the_layer() -> None:
    """Layers of different scale compete on equal terms."""
    scores = score(chain([[1, -3]], [[1000], [-1000]]), Magnitude(normalise=True), example_input=ONES)
    assert scores["0.weight"].tolist() == [[0.25, 0.75]]
    assert scores["2.weight"].tolist() == [[0.5], [0.5]]


def test_keeps_the_largest() -> None:
    masks = prune(two_by_two(), magnitude, density=0.5, example_input=ONES)
    assert masks["0.weight"].tolist() == [[False, True], [True, False]]
    assert masks["2.weight"].tolist() == [[True, False]]
