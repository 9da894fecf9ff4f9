"""Kept weights of removed channels, which move although no output depends on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab.compaction import ChannelIndex
from prunelab.pruning import Masks


@dataclass(frozen=True)
class _Dead:
    """Of one tensor: its full shape; where dead weights are in it, flattened, (n,) integers; their values, (n,)."""

    shape: tuple[int, ...]
    places: Tensor
    weights: nn.Parameter


class DeadWeights:
    """The kept weights that a compact network lacks, as they are in the masked one, for levels that rank them.

    Their gradients are 0, but weight decay shrinks them, and momentum from before the compaction carries them on. So
    they take the steps that the others take: by an optimizer of the same class and settings, with gradients of 0, but
    never fused. This is exact for optimizers that treat each weight by itself (not for LARS and LAMB), and where they
    are fused up to rounding, which depends there on where in its tensor a weight lies.
    """

    def __init__(self, dead: Mapping[str, _Dead]) -> None:
        self._dead = dict(dead)
        self._slots: dict[str, dict[str, Any]] = {}  # as restored: there may be no optimizer yet to hold them
        self._shadows: list[Optimizer] = []

    @classmethod
    def of(cls, net: nn.Module, masks: Masks, index: ChannelIndex) -> DeadWeights:
        """Those of the full network `net` under `masks` that the channels in `index` leave out."""
        dead = {}
        for name, mask in masks.items():
            if name in index.kept:
                left = {name: torch.ones(index.small_shape(name), dtype=torch.bool)}
                left = index.put(left, {name: torch.zeros(mask.shape, dtype=torch.bool)})
                places = (mask.cpu() & ~left[name]).flatten().nonzero().flatten()
                weights = net.get_parameter(name).detach()
                values = weights.flatten()[places.to(weights.device)]
                dead[name] = _Dead(tuple(mask.shape), places, nn.Parameter(values.clone()))
        return cls(dead)

    def follow(self, optimizer: Optimizer, net: nn.Module) -> None:
        """From now on every step of `optimizer`, which has the parameters of the compact `net`, is theirs too.

        To be called before its state is restored: of slots of full weights they take what is theirs.
        """
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        ordered = [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]
        for name in (name for group in ordered for name in group if name in self._dead):
            weights, leader = self._dead[name].weights, net.get_parameter(name)
            weights.data = weights.data.to(leader.device, leader.dtype)
        groups = [
            {**group, "params": [self._dead[name].weights for name in found if name in self._dead]}
            for group, found in zip(optimizer.param_groups, ordered, strict=True)
        ]
        shadow = object.__new__(type(optimizer))  # as one is unpickled: to be made, its class may ask for anything
        state: dict[str, Any] = {"defaults": optimizer.defaults, "state": defaultdict(dict), "param_groups": groups}
        shadow.__setstate__(state)
        for name, slots in self._slots.items():
            weights = self._dead[name].weights
            shadow.state[weights] = {
                key: slot.to(weights.device) if _is_of(slot, weights.shape) else slot for key, slot in slots.items()
            }
        self._shadows.append(shadow)
        flat = [name for group in ordered for name in group]
        optimizer.register_load_state_dict_pre_hook(partial(self._take_slots, shadow, flat))
        optimizer.register_step_post_hook(partial(_step_too, shadow))

    def _take_slots(self, shadow: Optimizer, names: list[str], _: Optimizer, state: dict[str, Any]) -> None:
        for number, slots in state["state"].items():
            dead = self._dead.get(names[number])
            if dead is None or not any(_is_of(slot, dead.shape) for slot in slots.values()):
                continue  # slots of the compact network: ours come with our own state
            shadow.state[dead.weights] = {
                key: slot.flatten()[dead.places.to(slot.device)].to(dead.weights.device)
                if _is_of(slot, dead.shape)
                else slot.clone()
                if isinstance(slot, Tensor)
                else slot
                for key, slot in slots.items()
            }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: for each tensor its full shape, places, weights and optimizer slots."""
        slots = {weights: own for shadow in self._shadows for weights, own in shadow.state.items()}
        return {
            name: {
                "shape": list(dead.shape),
                "places": dead.places,
                "weights": dead.weights.detach(),
                "slots": dict(slots.get(dead.weights, self._slots.get(name, {}))),
            }
            for name, dead in self._dead.items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> DeadWeights:
        """What `state_dict` gave."""
        restored = cls(
            {
                name: _Dead(tuple(own["shape"]), own["places"], nn.Parameter(own["weights"].clone()))
                for name, own in state.items()
            }
        )
        restored._slots = {name: _copied(own["slots"]) for name, own in state.items() if own["slots"]}
        return restored


def put_dead(full: Tensor, state: Mapping[str, Any], values: Tensor) -> Tensor:
    """`full` with the dead `values` in the places that `state`, one tensor's part of `state_dict`, names."""
    placed = full.flatten().clone()
    placed[state["places"].to(placed.device)] = values.to(placed)
    return placed.view(full.shape)


def _step_too(shadow: Optimizer, leader: Optimizer, *_: Any) -> None:
    overflow = getattr(leader, "found_inf", None)  # for a fused optimizer, whose kernel then leaves everything as it is
    if overflow is not None and overflow:
        return
    for group, own in zip(leader.param_groups, shadow.param_groups, strict=True):
        own.update({key: value for key, value in group.items() if key != "params"})
        if own.get("fused"):  # that would want its number of steps on the weights' device, where the others' is not
            own["fused"] = False
        for weights in own["params"]:
            weights.grad = torch.zeros_like(weights)
    shadow.step()


def _is_of(slot: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(slot, Tensor) and tuple(slot.shape) == shape


def _copied(slots: Mapping[str, Any]) -> dict[str, Any]:
    return {key: slot.clone() if isinstance(slot, Tensor) else slot for key, slot in slots.items()}
