"""Slots: what an optimizer holds for each weight, such as momentum and Adam's moments."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer


def lay_out_slots(optimizer: Optimizer) -> None:
    """Put slots into the memory format of their weights: on a CPU fused optimizers read both in the order of memory,
    and do not notice that the slots are of a checkpoint with other strides, channels last or not."""
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        slots = optimizer.state.get(weight, {})
        for key, slot in slots.items():
            if type(slot) is Tensor and slot.shape == weight.shape and slot.stride() != weight.stride():
                slots[key] = torch.empty_like(weight, dtype=slot.dtype, device=slot.device).copy_(slot)
