from __future__ import annotations

import torch

from prunelab.pruning.normalise import layer_normalised


def test_shares_of_the_kept_weights_of_a_layer() -> None:
    scores = {"a": torch.tensor([1.0, -3.0, 4.0]), "b": torch.tensor([2.0, 2.0])}
    masks = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, True])}
    shares = layer_normalised(scores, masks)
    assert shares["a"].tolist() == [0.25, -0.75, 1.0]
    assert shares["b"].tolist() == [0.5, 0.5]


def test_a_layer_without_scores_stays_at_zero() -> None:
    shares = layer_normalised({"a": torch.zeros(2)}, {"a": torch.ones(2, dtype=torch.bool)})
    assert shares["a"].tolist() == [0, 0]
