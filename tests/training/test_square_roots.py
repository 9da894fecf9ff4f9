"""Second moments of pruned weights are no zeros while an optimizer steps on a CPU: that changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prunelab.pruning import prune
from prunelab.pruning.criteria import magnitude
from prunelab.training import KeepPruned
from prunelab.training.square_roots import lift_zeros, lower_zeros

LEAST = 2 * torch.finfo(torch.float32).tiny


class UsersAdam(torch.optim.Adam):
    """Nobody knows what its slots hold."""


def stepped(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> tuple[torch.optim.Optimizer, Tensor, Tensor]:
    """(optimizer, weight, its second moments) after a step with gradients 0, 0.5, and one whose square is below t."""
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([0.0, 0.5, 1e-19])
    optimizer = make([weight])
    optimizer.step()
    return optimizer, weight, optimizer.state[weight]["exp_avg_sq"]


def test_no_zeros_in_the_step_and_zeros_again_after_it() -> None:
    optimizer, weight, squares = stepped(torch.optim.Adam)
    moment = float(squares[1])
    lift_zeros(optimizer, [weight])
    assert squares.tolist() == [LEAST, moment, LEAST]
    squares.mul_(0.999)  # as Adam does
    lower_zeros(optimizer, [weight])
    assert squares[0] == 0
    assert squares[1] > 0


@pytest.mark.parametrize(
    "make", [UsersAdam, lambda p: torch.optim.Adam(p, fused=True), lambda p: torch.optim.Adam(p, eps=0.0)]
)
def test_slots_of_others_are_left_alone(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
    optimizer, weight, squares = stepped(make)
    before = squares.clone()
    for change in (lift_zeros, lower_zeros):
        change(optimizer, [weight])
        assert torch.equal(squares, before)


def test_zeros_again_where_a_step_is_never_taken(fit: Any, make_net: Any, make_module: Any) -> None:
    class Breaks(Callback):
        steps = 0

        def on_before_optimizer_step(self, *_: Any) -> None:
            self.steps += 1
            if self.steps == 2:
                raise ValueError("about to step")

    module = make_module(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    masks = prune(make_net(), magnitude, density=0.2, example_input=torch.zeros(1, 1, 6, 6))
    optimizers: list[torch.optim.Optimizer] = []
    module.on_train_start = lambda: optimizers.extend(module.trainer.optimizers)
    with pytest.raises(ValueError, match="about to step"):
        fit(module, [KeepPruned(masks), Breaks()])
    weights = dict(module.net.named_parameters())
    for name, mask in masks.items():
        squares = optimizers[0].state[weights[name]]["exp_avg_sq"]
        assert squares[~mask].tolist() == [0.0] * int((~mask).sum())
        assert squares[mask].max() > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-1),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.NAdam(p, lr=0.01),
        lambda p: torch.optim.RAdam(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
        lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=1e-2),
        lambda p: torch.optim.Adadelta(p, lr=0.5),
    ],
)
def test_steps_are_those_of_the_optimizer_alone_bit_for_bit(
    make: Callable[[Any], torch.optim.Optimizer], fit: Any, make_net: Any, make_module: Any, images: Any
) -> None:
    module = make_module(optimizer=make)
    masks = prune(make_net(), magnitude, density=0.2, example_input=torch.zeros(1, 1, 6, 6))
    trainer = fit(module, [KeepPruned(masks)], max_epochs=5)

    net = make_net()
    masks.apply_to(net)
    optimizer, weights = make(net.parameters()), dict(net.named_parameters())
    for _ in range(5):
        for pictures, labels in DataLoader(images, batch_size=16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(pictures), labels).backward()
            for name, mask in masks.items():
                weights[name].grad *= mask
            optimizer.step()
            masks.apply_to(net)
    found = trainer.optimizers[0].state
    for name, weight in module.net.named_parameters():
        assert torch.equal(weight, weights[name]), name
        for key, slot in optimizer.state[weights[name]].items():
            assert torch.equal(torch.as_tensor(found[weight][key]), torch.as_tensor(slot)), (name, key)
