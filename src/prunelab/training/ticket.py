"""What a level of a ticket builds on, and what it makes of the weights of its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunelab.pruning import Masks
from prunelab.pruning.actions import Mask0, Mask1, kept_values, pruned_values


@dataclass(frozen=True)
class Ticket:
    """What a level builds on, beside the weights that it starts from.

    masks: of the level before; what they prune stays pruned. None: nothing is pruned yet. weights: state dict of the
    network that is scored, which the level before ended with; initial: state dict of the network at the rewind point.
    None: of the network as it stands. mask_1, keep_sign, mask_0: what becomes of kept and of pruned weights
    (`pruning.actions`). fresh: state dict of a network drawn anew, for mask_1 "reinit". start: state dict of the
    network that the level starts from, which a compaction has to look at before Lightning restores it.
    """

    masks: Masks | None = None
    weights: Mapping[str, Tensor] | None = None
    initial: Mapping[str, Tensor] | None = None
    mask_1: Mask1 = "rewind"
    keep_sign: bool = False
    mask_0: Mask0 = "zero"
    fresh: Mapping[str, Tensor] | None = None
    start: Mapping[str, Tensor] | None = None

    @torch.no_grad()
    def set_weights(self, net: nn.Module, masks: Masks, generator: torch.Generator) -> dict[str, Tensor] | None:
        """Give kept and pruned weights what they are to hold; returns what pruned ones are frozen at, None for 0."""
        parameters = {name: parameter for name, parameter in net.named_parameters() if name in masks}
        now = {name: parameter.clone() for name, parameter in parameters.items()}
        kept = kept_values(self.mask_1, now, masks, keep_sign=self.keep_sign, fresh=self.fresh, generator=generator)
        for name, values in kept.items():
            parameters[name].copy_(values)
        frozen = pruned_values(self.mask_0, self.initial or now, self.weights or now, masks)
        masks.apply_to(net, frozen)
        return frozen


@contextmanager
def weights_in_place(net: nn.Module, state: Mapping[str, Tensor] | None) -> Iterator[None]:
    """The network with the weights and buffers of `state`; with its own again afterwards, bit for bit."""
    if state is None:
        yield
        return
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_state_dict(state)
    try:
        yield
    finally:
        net.load_state_dict(own)
