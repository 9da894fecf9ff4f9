"""Which channels are dead: nothing that they are reaches the output through a kept weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunelab.compaction.channels import Channels, Layer
from prunelab.compaction.index import ChannelIndex, all_tensors
from prunelab.compaction.trace import traced


def find_channels(
    net: nn.Module, masks: Mapping[str, Tensor], example_input: Tensor, multiple: int = 1
) -> ChannelIndex:
    """The channels of `net`, whose pruned weights are 0, that have to stay.

    A channel is live if it is pinned (input, output, operations that are not understood) or read: some layer has a kept
    weight on it, whose row leads to a live channel, and the channel is not zero for ever. A channel is zero for ever if
    its layer has no kept weight on another one, its shifts are 0, and what follows is a straight way into a ReLU, whose
    gradient at 0 is 0: then the shift never learns. Channels that must share an index (a residual stream) live or die
    together. All others can go; what a kept layer still computes is the same.
    multiple: of which the number of channels a layer gives is made, with dead ones, which change nothing.
    Raises: CompactionError if the network cannot be traced.
    """
    channels = Channels(net, traced(net, example_input), masks)
    roots = channels.roots()
    live = torch.zeros(channels.num_ids, dtype=torch.bool)
    live[roots[torch.tensor(sorted(channels.pinned), dtype=torch.long)]] = True
    layers = [_by_roots(layer, roots) for layer in channels.layers]
    _spread_life(live, layers)
    _fill_up(live, layers, [roots[ids] for ids in channels.signals], multiple)
    return _index(net, channels, live[roots])


def _by_roots(layer: Layer, roots: Tensor) -> Layer:
    return Layer(layer.path, roots[layer.inputs], roots[layer.outputs], layer.reads, layer.groups)


def _spread_life(live: Tensor, layers: list[Layer]) -> None:
    """From outputs to the inputs that they read, until nothing changes: a residual stream may need several passes."""
    before = -1
    while before != (before := int(live.sum())):
        for layer in reversed(layers):
            needed = layer.reads & live[layer.outputs].unsqueeze(1)
            if layer.groups == 1:
                live[layer.inputs[needed.any(0)]] = True
            else:
                by_group = needed.view(layer.groups, -1, needed.shape[1]).any(1)  # (groups, columns of each)
                live[layer.inputs[by_group.view(-1)]] = True
                _whole_groups(live, layer)


def _whole_groups(live: Tensor, layer: Layer) -> None:
    """A grouped convolution has as many inputs in each group, and as many outputs: a group goes as a whole."""
    sides = [side.view(layer.groups, -1) for side in (layer.inputs, layer.outputs)]
    alive = live[sides[0]].any(1) | live[sides[1]].any(1)
    for side in sides:
        live[side[alive]] = True


def _fill_up(live: Tensor, layers: list[Layer], signals: list[Tensor], multiple: int) -> None:
    """Dead channels that stay: torch has no layers without channels, and widths may have to be a `multiple`."""
    before = -1
    while before != (before := int(live.sum())):
        for ids in signals:
            if not live[ids].any():
                live[ids[:1]] = True
        for layer in layers:
            alive = live[layer.outputs]
            missing = min(-int(alive.sum()) % multiple, int((~alive).sum()))
            live[layer.outputs[~alive][:missing]] = True
            if layer.groups > 1:
                _whole_groups(live, layer)


def _index(net: nn.Module, channels: Channels, live: Tensor) -> ChannelIndex:
    """live: number of a channel -> whether it stays."""
    tensors = all_tensors(net)
    names = defaultdict(list)
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
    index = ChannelIndex()

    def keep(first: str, *parts: Tensor) -> None:
        if first not in tensors or all(bool(part.all()) for part in parts):
            return
        for name in names[id(tensors[first])]:
            index.kept[name] = tuple(None if bool(part.all()) else part.nonzero().flatten() for part in parts)
            index.shapes[name] = tuple(tensors[name].shape)

    for layer in channels.layers:
        rows, columns = live[layer.outputs], live[layer.inputs]
        if layer.groups > 1:
            columns = torch.ones(layer.reads.shape[1], dtype=torch.bool)  # groups go whole, and theirs stay
        keep(f"{layer.path}.weight", rows, columns)
        keep(f"{layer.path}.bias", rows)
    for path, ids in channels.norms.items():
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            keep(f"{path}.{leaf}", live[ids])
    for path, (ids, before, after) in channels.pads.items():
        alive = live[ids]
        counts = int(alive[:before].sum()), int(alive[len(ids) - after :].sum())
        if counts != (before, after):
            index.pads[path] = counts
    return index
