"""What a level has left to export, and the networks that it makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunelab.compaction import compact
from prunelab.experiment.errors import RunError
from prunelab.export.found import Found, compacted, with_weights
from prunelab.pruning import Masks

EXAMPLE = torch.zeros(1, 6)


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


@pytest.fixture
def masks() -> Masks:
    """Of five hidden channels the first two are read by none."""
    return Masks({"0.weight": torch.ones(5, 6) > 0, "2.weight": (torch.arange(5) > 1).expand(4, 5)})


def found_of(net: nn.Module, masks: Masks, **changes: Any) -> Found:
    values: dict[str, Any] = {"level": 1, "when": "trained", "index": None, "record": {"criterion": "snip"}}
    return Found(weights=net.state_dict(), masks=masks, **values | changes)


def test_sizes_and_what_is_said(masks: Masks) -> None:
    found = found_of(plain(), masks)
    assert found.dense_bytes == 4 * (30 + 5 + 20 + 4)
    assert found.about | {"prunelab": "", "masks_digest": ""} == {
        "prunelab": "",
        "criterion": "snip",
        "level": 1,
        "weights": "trained",
        "density": 42 / 50,
        "num_kept": 42,
        "num_prunable": 50,
        "masks_digest": "",
    }


def test_pruned_weights_with_other_values_than_zero_are_computed(masks: Masks) -> None:
    net = plain()
    masks.apply_to(net)
    assert found_of(net, masks).computed == masks
    with torch.no_grad():
        net[2].weight[3, 0] = 0.5
    found = found_of(net, masks)
    assert found.computed["2.weight"].sum() == 13
    small = compacted(net, found, EXAMPLE)
    assert small[0].out_features == 4  # channel 0 is read after all
    inputs = torch.randn(3, 6)
    assert torch.allclose(small(inputs), net(inputs), atol=1e-6)


@pytest.mark.parametrize("trained_compact", [False, True])
def test_the_compact_network_has_the_channels_it_trained_with(masks: Masks, trained_compact: bool) -> None:
    net = plain()
    masks.apply_to(net)
    index = compact(net, masks, EXAMPLE, multiple=2).index if trained_compact else None
    small = compacted(net, found_of(net, masks, index=index), EXAMPLE)
    assert small[0].out_features == (4 if trained_compact else 3)
    assert net[0].out_features == 5
    inputs = torch.randn(3, 6)
    assert torch.allclose(small(inputs), net(inputs), atol=1e-6)


def test_weights_are_taken_in_their_precision(masks: Masks) -> None:
    trained = plain(seed=1).double()
    net = with_weights(plain(), found_of(trained, masks))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in trained.state_dict().items())
    assert net[0].weight.dtype == torch.float64
    assert not net.training


def test_weights_of_another_network_are_refused(masks: Masks) -> None:
    with pytest.raises(RunError, match="the weights do not fit the network of the run's config: "):
        with_weights(plain()[:1], found_of(plain(), masks))
