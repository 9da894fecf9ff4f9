"""Weights without a gradient, stepped beside a compact network, are what they are in the full one: bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab.compaction import compact
from prunelab.pruning import Masks
from prunelab.training.compacting import accept_full_slots
from prunelab.training.dead_weights import DeadWeights, put_dead

OPTIMIZERS: list[Callable[[Any], Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    lambda p: torch.optim.SGD(p, lr=0.1),
    lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()


def dead_channel(net: nn.Module) -> Masks:
    """Channel 2 of the first layer is read by nobody: its three kept weights are dead."""
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters() if p.dim() == 2}
    masks["2.weight"][:, 2] = False
    masks["0.weight"][2, 1] = False
    return Masks(masks)


def train(net: nn.Module, optimizer: Optimizer, steps: range) -> None:
    """The gradients of the masked network; as KeepPruned would, with the masked ones at 0."""
    for step in steps:
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)  # a schedule
        inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        net(inputs).square().mean().backward()
        optimizer.step()


def dead_values(state: dict[str, Any]) -> Tensor:
    assert state["0.weight"]["places"].tolist() == [6, 8]  # of row 2, column 1 is pruned
    return state["0.weight"]["weights"]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("momentum_before", [False, True])
def test_they_move_as_in_the_full_network(make: Callable[[Any], Optimizer], momentum_before: bool) -> None:
    full = network()
    masks = dead_channel(full)
    leader = make(full.parameters())
    if momentum_before:
        train(full, leader, range(3))
    for name, mask in masks.items():  # what is pruned has no part in it, slots included
        parameter = full.get_parameter(name)
        parameter.data[~mask] = 0
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
        for slot in leader.state[parameter].values():
            if isinstance(slot, Tensor) and slot.shape == mask.shape:
                slot.mul_(mask)
    small = compact(full, masks, torch.zeros(1, 3, dtype=torch.float64))
    assert small.net[0].out_features == 3
    dead = DeadWeights.of(full, masks, small.index)
    optimizer = make(small.net.parameters())
    dead.follow(optimizer, small.net)
    accept_full_slots(optimizer, small.net, small.index)
    optimizer.load_state_dict(deepcopy(leader.state_dict()))  # it takes some tensors as they are
    for steps in (range(3, 6), range(6, 9)):
        train(full, leader, steps)
        train(small.net, optimizer, steps)
        expected = full.get_parameter("0.weight")[2, [0, 2]].detach()
        torch.testing.assert_close(dead_values(dead.state_dict()), expected, rtol=1e-14, atol=0)
        # as after a resume: from what a checkpoint holds, with a fresh optimizer
        state, slots = dead.state_dict(), optimizer.state_dict()
        dead = DeadWeights.from_state(state)
        optimizer = make(small.net.parameters())
        dead.follow(optimizer, small.net)
        optimizer.load_state_dict(slots)


def test_in_their_places_in_the_full_tensor() -> None:
    full = torch.arange(6.0).view(2, 3)
    placed = put_dead(full, {"places": torch.tensor([1, 5])}, torch.tensor([-1.0, -2.0]))
    assert placed.tolist() == [[0, -1, 2], [3, 4, -2]]
    assert full.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_they_wait_where_a_fused_step_is_skipped_for_its_overflow() -> None:
    """Mixed precision: the scaler calls `step` of a fused optimizer all the same."""
    full = network()
    masks = dead_channel(full)
    small = compact(full, masks, torch.zeros(1, 3, dtype=torch.float64))
    dead = DeadWeights.of(full, masks, small.index)
    leader: Any = torch.optim.AdamW(small.net.parameters(), lr=0.01, fused=True)
    dead.follow(leader, small.net)
    train(small.net, leader, range(1))
    before, weights = deepcopy(dead.state_dict()["0.weight"]), small.net[0].weight.detach().clone()
    leader.grad_scale, leader.found_inf = torch.ones(()), torch.ones(())
    train(small.net, leader, range(1, 2))
    assert torch.equal(small.net[0].weight, weights)
    after = dead.state_dict()["0.weight"]
    assert torch.equal(after["weights"], before["weights"])
    assert after["slots"]["step"] == before["slots"]["step"] == 1
    leader.found_inf.zero_()
    train(small.net, leader, range(2, 3))
    assert (dead.state_dict()["0.weight"]["weights"] != before["weights"]).all()
