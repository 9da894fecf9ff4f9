from __future__ import annotations

import torch
from torch import nn

from prunelab.experiment.footprint import footprint


def test_bytes_are_those_of_the_state_dict_and_latency_is_a_time() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measured = footprint(net, torch.zeros(1, 1, 4, 4))
    # float32: conv 18 + 2, batch norm 4 * 2, linear 24 + 3; one int64 counter
    assert measured["weight_bytes"] == 4 * (20 + 8 + 27) + 8
    assert measured["latency_ms"] > 0
    assert measured["latency_threads"] == torch.get_num_threads()
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
