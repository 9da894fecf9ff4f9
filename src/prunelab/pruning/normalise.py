"""Scores as shares of their layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def layer_normalised(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """s / sum of |s| over the layer's kept weights; a layer whose sum is 0 stays 0."""
    sums = {name: values.abs().mul(masks[name]).sum() for name, values in scores.items()}
    return {name: values / sums[name].where(sums[name] > 0, 1.0) for name, values in scores.items()}
