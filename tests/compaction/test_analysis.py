from __future__ import annotations

import pytest

from prunelab.compaction import compact, count_channels

from .exactness import Step, assert_exact, ragged_masks
from .random_nets import random_batch, random_net


@pytest.mark.parametrize("seed", range(100))
def test_exact_on_random_networks(seed: int) -> None:
    net = random_net(seed)
    density, alive = ((0.9, 0.4), (0.5, 0.7), (0.2, 0.8), (0.7, 0.9))[seed % 4]
    multiple = (1, 1, 1, 4)[seed // 4 % 4]
    masks = ragged_masks(net, density, seed, alive)
    found = assert_exact(net, masks, random_batch(seed), multiple=multiple, steps=Step(3, 0.01))
    assert count_channels(found.net) <= count_channels(net)


def test_a_share_of_the_channels_of_random_networks_goes() -> None:
    """Exactness alone would be met by an analysis that pins all."""
    full, left = 0, 0
    for seed in range(0, 100, 4):
        net = random_net(seed)
        found = compact(net, ragged_masks(net, 0.9, seed, 0.4), random_batch(seed)[0][:1])
        full, left = full + count_channels(net), left + count_channels(found.net)
    assert left < 0.8 * full
