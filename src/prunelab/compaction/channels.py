"""Which channels must share an index, which are zero for ever, and which weighted layers write and read them.

Whatever is not understood (`operations`) pins the channels that it sees and gives: they are never removed.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunelab.compaction.errors import CompactionError
from prunelab.compaction.index import BATCH_NORMS, CONVOLUTIONS, ChannelPad, is_channel_pad
from prunelab.compaction.operations import (
    CONCATENATIONS,
    ELEMENTWISE,
    FLATTENINGS,
    MEANS,
    PRODUCTS,
    QUOTIENTS,
    RELUS,
    SAME,
    SUMS,
    ZERO_TO_ZERO,
    asks_for_no_channels,
    has_batches,
    has_hooks,
    pads_no_channels,
    reduces_no_channels,
    takes_all_channels,
)
from prunelab.compaction.overwritten import overwritten
from prunelab.compaction.trace import shape

# what a channel's signal is, from little to much; `max` of two is the state of their sum
ZERO = 0  # exactly 0 for every input, in training and evaluation, and stays so
UNTOUCHED = 1  # exactly 0, but a shift (bias, beta) that is 0 now could learn: decided by what follows
ANY = 2


@dataclass(frozen=True)
class Signal:
    """The channels of one tensor: their numbers, (C,) integers, and the state of each, (C,)."""

    ids: Tensor
    state: Tensor


@dataclass(frozen=True)
class Layer:
    """A weighted layer: reads[i, j], of (rows, columns), says whether a kept weight takes input j, where that can be
    other than zero, to output i. groups: of a convolution; columns are then those of one group."""

    path: str
    inputs: Tensor
    outputs: Tensor
    reads: Tensor
    groups: int


class Channels:
    """Walks the graph once, forwards, and notes what each operation does to channels.

    layers: the weighted layers. norms: path of each batch norm -> numbers of its channels. pads: path of each channel
    pad -> numbers of its output's channels, and how many of them come before and after. pinned: numbers that stay.
    signals: of every operation, for who needs all of a tensor's channels.
    """

    def __init__(self, net: nn.Module, graph: fx.Graph, masks: Mapping[str, Tensor]) -> None:
        self.layers: list[Layer] = []
        self.norms: dict[str, Tensor] = {}
        self.pads: dict[str, tuple[Tensor, int, int]] = {}
        self.pinned: set[int] = set()
        self._masks = masks
        self._modules = dict(net.named_modules())
        self._parents: list[int] = []
        self._of: dict[fx.Node, Signal] = {}
        self._calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        self._overwritten = overwritten(graph, self._modules)
        tensors = [(*m.parameters(recurse=False), *m.buffers(recurse=False)) for m in net.modules()]
        self._num_owners = Counter(id(tensor) for owned in tensors for tensor in owned)
        called = [self._modules[path] for path in self._calls]
        # a module in another one that is called as a whole is used there too; so is one whose tensors are taken
        self._inner = {id(inner) for module in called for inner in module.modules() if inner is not module}
        self._taken = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        for node in graph.nodes:
            self._visit(node)
        self.signals = [signal.ids for signal in self._of.values()]

    @property
    def num_ids(self) -> int:
        return len(self._parents)

    def roots(self) -> Tensor:
        """Number -> the number that stands for all channels which share its index."""
        return torch.tensor([self._find(number) for number in range(self.num_ids)], dtype=torch.long)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            self._pin_inputs(node)
        elif node.op in ("placeholder", "get_attr"):
            self._give_pinned(node)
        elif not self._follow(node):
            self._pin_inputs(node)
            self._give_pinned(node)
        signal = self._of.get(node)
        if signal is not None and node in self._overwritten:
            self._of[node] = Signal(signal.ids, torch.full_like(signal.state, ANY))
        elif signal is not None and len(node.users) > 1:
            # a shift learns unless all that follows is one straight way into a ReLU
            self._of[node] = Signal(signal.ids, torch.where(signal.state == UNTOUCHED, ANY, signal.state))

    def _follow(self, node: fx.Node) -> bool:
        """Note what the operation does; False if it is not one of those that are understood."""
        first = self._signal(node.args[0]) if node.args else None
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        if module is not None:
            return first is not None and self._follow_module(node, module, first)
        function = node.target
        if "out" in node.kwargs:
            return False
        if function in ("size", "dim") or (
            function is getattr and node.args[1] in ("shape", "ndim", "device", "dtype")
        ):
            return asks_for_no_channels(node)
        if function in CONCATENATIONS:
            return self._concatenate(node)
        if first is None:
            return function is operator.getitem and not self._inputs(node) and shape(node) is None
        if function in SUMS | PRODUCTS | QUOTIENTS:
            return self._combine(node, first)
        if function in FLATTENINGS:
            return self._flatten(node, first)
        if function in MEANS and not reduces_no_channels(node):
            return False
        if function is operator.getitem and not takes_all_channels(node):
            return False
        if function in (F.pad, torch.constant_pad_nd) and not pads_no_channels(node):
            return False
        if function in (*MEANS, operator.getitem, F.pad, torch.constant_pad_nd):
            return self._give(node, first.ids, first.state)
        return self._map(node, function, first)

    def _follow_module(self, node: fx.Node, module: nn.Module, first: Signal) -> bool:
        kind, path = type(module), str(node.target)
        if has_hooks(module):
            return False
        if is_channel_pad(module):
            return self._calls[path] == 1 and self._pad(node, path, module, first)
        if kind in (*CONVOLUTIONS, nn.Linear):
            return self._is_plain(path, module) and self._weigh(node, path, module, first)
        if kind in BATCH_NORMS:
            return self._is_plain(path, module) and self._normalise(node, path, module, first)
        if kind is nn.Flatten:
            return self._flatten(node, first)
        if kind is nn.PReLU and module.num_parameters == 1:
            return self._give(node, first.ids, torch.where(first.state == ZERO, ZERO, ANY))
        if getattr(module, "return_indices", False):
            return False
        return self._map(node, kind, first)

    def _is_plain(self, path: str, module: nn.Module) -> bool:
        """Called once, and nothing else has its parameters. Raises: CompactionError for NaN and infinity: 0 times
        them is not 0."""
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise CompactionError(f"{path}.{name} holds values that are not finite")
        shared = any(self._num_owners[id(tensor)] > 1 for tensor in tensors.values())
        return self._calls[path] == 1 and not shared and id(module) not in self._inner and path not in self._taken

    def _map(self, node: fx.Node, function: Any, first: Signal) -> bool:
        state = first.state
        if len(self._inputs(node)) > 1 or function not in SAME | RELUS | ZERO_TO_ZERO | ELEMENTWISE:
            return False
        if not has_batches(node, function):
            return False
        if function in RELUS:
            state = torch.where(state == UNTOUCHED, ZERO, state)
        elif function in ZERO_TO_ZERO:
            state = torch.where(state == ZERO, ZERO, ANY)
        elif function in ELEMENTWISE:
            state = torch.full_like(state, ANY)
        return self._give(node, first.ids, state)

    def _weigh(self, node: fx.Node, path: str, module: Any, first: Signal) -> bool:
        weight, groups = module.weight, getattr(module, "groups", 1)
        if isinstance(module, nn.Linear) and len(shape(node) or ()) != 2:
            return False  # channels are in the last dimension, not in the second
        if not has_batches(node, type(module)):
            return False
        mask = self._masks.get(f"{path}.weight")
        kept = torch.ones(weight.shape[:2], dtype=torch.bool)  # (rows, columns)
        if mask is not None:
            kept = mask.cpu().reshape(*weight.shape[:2], -1).any(2)
        moving = (first.state != ZERO).view(groups, 1, -1)  # by group: (groups, 1, columns)
        reads = (kept.view(groups, -1, kept.shape[1]) & moving).view(kept.shape)
        state = torch.where(reads.any(1), ANY, ZERO)
        if module.bias is not None:
            shift = torch.where(module.bias.detach().cpu() == 0, UNTOUCHED, ANY)
            state = torch.maximum(state, shift)
        outputs = self._new(len(weight))
        self.layers.append(Layer(path, first.ids, outputs, reads, groups))
        return self._give(node, outputs, state)

    def _normalise(self, node: fx.Node, path: str, module: Any, first: Signal) -> bool:
        state = first.state.clone()
        if module.running_mean is not None:
            state[module.running_mean.cpu() != 0] = ANY
        if module.bias is not None:
            state = torch.maximum(state, torch.where(module.bias.detach().cpu() == 0, UNTOUCHED, ANY))
        self.norms[path] = first.ids
        return self._give(node, first.ids, state)

    def _pad(self, node: fx.Node, path: str, module: ChannelPad, first: Signal) -> bool:
        if shape(node) is None or (shape(node) or ())[1] != module.before + len(first.ids) + module.after:
            return False
        before, after = self._new(module.before), self._new(module.after)
        ids = torch.cat([before, first.ids, after])
        state = torch.cat([torch.full_like(before, ZERO), first.state, torch.full_like(after, ZERO)])
        self.pads[path] = (ids, len(before), len(after))
        return self._give(node, ids, state)

    def _combine(self, node: fx.Node, first: Signal) -> bool:
        if len(node.args) != 2:
            return False
        other, function = node.args[1], node.target
        if isinstance(other, int | float):
            scales = function in PRODUCTS or (function in QUOTIENTS and other != 0)
            keeps = other == 0 if function in SUMS else scales and math.isfinite(other)
            return self._give(node, first.ids, first.state if keeps else torch.full_like(first.state, ANY))
        second = self._signal(other)
        if second is None or len(first.ids) != len(second.ids) or function in QUOTIENTS:
            return False
        if any(len(shape(operand) or ()) != len(shape(node) or ()) for operand in self._inputs(node)):
            return False  # aligned at their last dimensions, the channels do not meet
        state = torch.maximum(first.state, second.state)
        if function in PRODUCTS:
            state = torch.where((first.state == ZERO) | (second.state == ZERO), ZERO, ANY)
        for one, two in zip(first.ids.tolist(), second.ids.tolist(), strict=True):
            self._parents[self._find(two)] = self._find(one)
        return self._give(node, first.ids, state)

    def _concatenate(self, node: fx.Node) -> bool:
        parts = node.args[0]
        found = [self._signal(part) for part in parts] if isinstance(parts, Sequence) else []
        signals = [signal for signal in found if signal is not None]
        dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        result = shape(node)
        if not signals or len(signals) != len(found) or result is None or dimension not in (1, 1 - len(result)):
            return False
        ids, states = [signal.ids for signal in signals], [signal.state for signal in signals]
        return self._give(node, torch.cat(ids), torch.cat(states))

    def _flatten(self, node: fx.Node, first: Signal) -> bool:
        """(N, C, ...) -> (N, C * positions), without a number of channels that is written into the code."""
        operand = shape(node.all_input_nodes[0])
        result = shape(node)
        if operand is None or result is None or len(result) != 2 or result[0] != operand[0]:
            return False
        is_flatten = node.op == "call_module" or node.target in (torch.flatten, "flatten")
        if not is_flatten and node.args[-1] not in (-1, (-1,), [-1]):
            sizes = node.args[1] if len(node.args) == 2 else None
            if not isinstance(sizes, Sequence) or sizes[-1] != -1:
                return False
        positions = math.prod(operand[2:])
        return self._give(node, first.ids.repeat_interleave(positions), first.state.repeat_interleave(positions))

    def _give(self, node: fx.Node, ids: Tensor, state: Tensor) -> bool:
        result = shape(node)
        if result is None or len(result) < 2 or result[1] != len(ids):
            return False
        self._of[node] = Signal(ids, state)
        return True

    def _give_pinned(self, node: fx.Node) -> None:
        result = shape(node)
        if result is not None and len(result) >= 2:
            ids = self._new(result[1])
            self.pinned.update(ids.tolist())
            self._of[node] = Signal(ids, torch.full((len(ids),), ANY))

    def _pin_inputs(self, node: fx.Node) -> None:
        for operand in self._inputs(node):
            self.pinned.update(self._of[operand].ids.tolist())

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        return [operand for operand in node.all_input_nodes if operand in self._of]

    def _signal(self, argument: Any) -> Signal | None:
        return self._of.get(argument) if isinstance(argument, fx.Node) else None

    def _new(self, number: int) -> Tensor:
        first = len(self._parents)
        self._parents.extend(range(first, first + number))
        return torch.arange(first, first + number)

    def _find(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number
