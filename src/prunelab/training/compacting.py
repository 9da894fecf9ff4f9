"""A compact network under Lightning: where it starts, what checkpoints carry of it, how full and compact ones meet."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab.compaction import ChannelIndex, Compacted, CompactionError, compact, count_channels, shrink
from prunelab.pruning import Masks, PruningError
from prunelab.pruning.diagnostics import count_macs
from prunelab.training.dead_weights import DeadWeights, put_dead
from prunelab.training.keep_pruned import weight_averages
from prunelab.training.network import COMPACTION as KEY
from prunelab.training.network import find_network
from prunelab.training.ranks import load_from_first
from prunelab.training.ticket import Ticket

Checkpoint = dict[str, Any]


class Compaction:
    """What a training knows of its compact network, from `setup`, where it becomes one, to its checkpoints.

    index: the map to the full network; None while it is the full one that trains. not_compacted: why it could not be
    made smaller. dead: kept weights of the removed channels, where they are followed (`DeadWeights`).
    """

    def __init__(self) -> None:
        self.index: ChannelIndex | None = None
        self.not_compacted: str | None = None
        self.dead: DeadWeights | None = None
        self._full_parameters: list[nn.Parameter] = []

    def find(
        self,
        trainer: Trainer,
        net: nn.Module,
        masks: Masks,
        example_input: Tensor,
        *,
        multiple: int,
        follows_dead_weights: bool,
    ) -> None:
        """Find the channels of the full `net` that stay under `masks`, and say how many, or warn why all of them do.

        multiple: of which widths are made. The network stays as it is: see `shrink`.
        """
        try:
            small = compact(net, masks, example_input, multiple=multiple)
        except CompactionError as error:
            self.not_compacted = str(error)
            warnings.warn(f"not compacted, trains masked: {error}", stacklevel=2)
            return
        self.index = small.index
        if follows_dead_weights:
            self.dead = DeadWeights.of(net, masks, small.index)
        if trainer.is_global_zero:
            print(_summary(net, small, masks, example_input), flush=True)

    def shrink(self, net: nn.Module) -> None:
        """Make `net` the compact network, if there is one; from now on it also takes the full one's weights."""
        if self.index is not None:
            self._full_parameters = list(net.parameters())
            shrink(net, self.index)
            accept_full_weights(net, self.index)

    def join(self, optimizers: list[Optimizer], net: nn.Module) -> None:
        """Before their states are restored: they also take those of the full network, and dead weights follow them.

        Raises: PruningError for an optimizer that has the full network's parameters.
        """
        if self.index is None:
            return
        gone = {id(parameter) for parameter in self._full_parameters} - {id(own) for own in net.parameters()}
        self._full_parameters = []
        for optimizer in optimizers:
            if any(id(parameter) in gone for group in optimizer.param_groups for parameter in group["params"]):
                raise PruningError(
                    "compact: the optimizer was given parameters before the network became smaller; take them in "
                    "configure_optimizers"
                )
            if self.dead is not None:
                self.dead.follow(optimizer, net)
            accept_full_slots(optimizer, net, self.index)

    def save(self, checkpoint: Checkpoint, pl_module: LightningModule, path: str, optimizers: list[Optimizer]) -> None:
        """Let `checkpoint` say, under `KEY`, what is compact about the network that it holds, if it is.

        net: `path`, where it is in the LightningModule. index: the map to the full network. parameters: for each
        optimizer the names of its parameters in the network, in the order of its state; None for those of others.
        dead: the followed weights and their slots; missing if none are.
        """
        if self.index is None:
            return
        net = find_network(pl_module, path)
        checkpoint[KEY] = {
            "net": path,
            "index": self.index.state_dict(),
            "parameters": [_parameter_names(optimizer, net) for optimizer in optimizers],
        }
        if self.dead is not None:
            checkpoint[KEY]["dead"] = self.dead.state_dict()

    def resume_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Take what `save` has put there."""
        self.index = index_in(checkpoint)
        if "dead" in checkpoint.get(KEY, {}):
            self.dead = DeadWeights.from_state(checkpoint[KEY]["dead"])


def check_compactible(trainer: Trainer, net: nn.Module, ticket: Ticket, *, has_masks: bool) -> None:
    """Whether `net` can become a compact network in `setup`. has_masks: of a former fit, or of a checkpoint.

    Raises: PruningError for a compact network without masks, weight averaging that has copied the network, and tickets
    that give kept or pruned weights other values.
    """
    if not has_masks and is_compact(net):
        raise PruningError("compact: the network is a compact one already, its masks would not be the full one's")
    if weight_averages(trainer):
        raise PruningError("compact: PruningAtInit goes before weight averaging, which copies the network")
    if (ticket.mask_1, ticket.keep_sign, ticket.mask_0) != ("rewind", False, "zero"):
        raise PruningError("compact: goes with kept weights that rewind and pruned weights that are 0")


def start_together(trainer: Trainer, net: nn.Module, weights: Mapping[str, Tensor] | None) -> None:
    """Put the network where it trains, with `weights` or its own; on all ranks those of rank 0.

    For `setup`: Lightning moves modules, DDP compares ranks, and checkpoints are restored only later.
    """
    if weights is not None:
        net.load_state_dict(weights)
    load_from_first(trainer, net)
    net.to(trainer.strategy.root_device)


def index_in(checkpoint: Mapping[str, Any]) -> ChannelIndex | None:
    """The map to the full network, if the checkpoint holds a compact one."""
    return ChannelIndex.from_state(checkpoint[KEY]["index"]) if KEY in checkpoint else None


def shrink_as_in(pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Make the module's network as small as that of the checkpoint, so that its state dict fits; for
    `on_load_checkpoint`, which Lightning calls before it loads the weights. Others than compact ones change nothing.

    Raises: CompactionError if the network is neither the full one nor that compact one.
    """
    index = index_in(checkpoint)
    if index is None:
        return
    try:
        shrink(find_network(pl_module, checkpoint[KEY]["net"]), index)
    except CompactionError as error:
        raise CompactionError(
            f"{error}; to resume a compact training, call PruningAtInit.resume_from(checkpoint) before fit"
        ) from error


def is_compact(net: nn.Module) -> bool:
    """Whether a compaction has gone over this very module."""
    hooks = net._load_state_dict_pre_hooks.values()  # no public way exists
    return any(getattr(getattr(hook, "hook", hook), "func", None) is _take_weights for hook in hooks)


def accept_full_weights(net: nn.Module, index: ChannelIndex) -> None:
    """From now on `net.load_state_dict` also takes the full network's state dict, and of it what the compact has."""
    if not is_compact(net):
        net.register_load_state_dict_pre_hook(partial(_take_weights, index))


def accept_full_slots(optimizer: Optimizer, net: nn.Module, index: ChannelIndex) -> None:
    """From now on the optimizer's `load_state_dict` also takes slots (momentum, Adam moments) of full weights."""
    optimizer.register_load_state_dict_pre_hook(partial(_take_slots, index, _parameter_names(optimizer, net)))


def in_full(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint of the full network that computes the same; as it is, if it holds no compact one.

    weights: state dict of the full network, for the values of the removed channels, whose optimizer slots are 0; but
    for dead weights that were followed (`DeadWeights`): they are what they are in a masked training.
    """
    index = index_in(checkpoint)
    if index is None:
        return checkpoint
    path = checkpoint[KEY]["net"]
    dotted = f"{path}." if path else ""
    state = checkpoint["state_dict"]
    small = {name.removeprefix(dotted): state[name] for name in state if name.startswith(dotted)}
    dead = checkpoint[KEY].get("dead", {})
    placed = index.put(small, weights)
    placed |= {name: put_dead(placed[name], own, own["weights"]) for name, own in dead.items()}
    full = {f"{dotted}{name}": values for name, values in placed.items()}
    # a checkpoint from before its first step has optimizer states without slots
    optimizer_states = [
        {**own, "state": {i: _full_slots(index, names[i], slots, dead) for i, slots in own["state"].items()}}
        for own, names in zip(checkpoint.get("optimizer_states", []), checkpoint[KEY]["parameters"], strict=True)
    ]
    others = {name: value for name, value in checkpoint.items() if name != KEY}
    return {**others, "state_dict": {**state, **full}, "optimizer_states": optimizer_states}


def _summary(full: nn.Module, small: Compacted, masks: Masks, example_input: Tensor) -> str:
    """One line that says how much smaller the network has become."""
    factor = count_macs(full, example_input) / count_macs(small.net, example_input)
    return (
        f"compact            {count_channels(small.net):,} of {count_channels(full):,} channels left, "
        f"{small.masks.num_weights:,} of {masks.num_weights:,} prunable weights stored, {factor:.2f} times fewer MACs"
    )


def _full_slots(
    index: ChannelIndex, name: str | None, slots: dict[str, Any], dead: Mapping[str, Any]
) -> dict[str, Any]:
    if name is None or name not in index.kept:
        return slots
    full = dict(slots)
    for key, slot in slots.items():
        if isinstance(slot, Tensor) and tuple(slot.shape) == index.small_shape(name):
            full[key] = index.put({name: slot}, {name: slot.new_zeros(index.shapes[name])})[name]
            if name in dead and key in dead[name]["slots"]:
                full[key] = put_dead(full[key], dead[name], dead[name]["slots"][key])
    return full


def _take_weights(index: ChannelIndex, net: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    shapes = {name: tuple(state[f"{prefix}{name}"].shape) for name in index.kept if f"{prefix}{name}" in state}
    if any(shape not in (index.shapes[name], index.small_shape(name)) for name, shape in shapes.items()):
        raise CompactionError("the weights are of a network that was compacted otherwise")
    for name, shape in shapes.items():
        if shape == index.shapes[name]:
            state[f"{prefix}{name}"] = index.select(name, state[f"{prefix}{name}"])


def _take_slots(
    index: ChannelIndex, names: list[str | None], optimizer: Optimizer, state: dict[str, Any]
) -> dict[str, Any]:
    taken = {}
    for number, slots in state["state"].items():
        name = names[number]
        if name not in index.kept:
            taken[number] = slots
            continue
        taken[number] = {
            key: index.select(name, slot)
            if isinstance(slot, Tensor) and tuple(slot.shape) == index.shapes[name]
            else slot
            for key, slot in slots.items()
        }
    return {**state, "state": taken}


def _parameter_names(optimizer: Optimizer, net: nn.Module) -> list[str | None]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [names.get(id(parameter)) for group in optimizer.param_groups for parameter in group["params"]]
