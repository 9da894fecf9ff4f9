"""What operations do to channels (dimension 1): the tables of those that are understood, and when they are.

Every operation in the tables acts on each channel by itself, or moves channels as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from prunelab.compaction.trace import shape

SAME = {  # each channel by itself, 0 stays 0, and so do gradients
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Upsample, nn.UpsamplingNearest2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.UpsamplingBilinear2d),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.interpolate, F.max_pool1d, F.max_pool2d, F.max_pool3d),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.clone, "clone", "contiguous", "float", "double", "to"),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.adaptive_avg_pool1d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch.max_pool1d, torch.max_pool2d),
}
# 0 stays 0, and where the signal is 0 no gradient comes back
RELUS = {nn.ReLU, nn.ReLU6, F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, "relu", "relu_"}
ZERO_TO_ZERO = {  # 0 stays 0, but a gradient comes back
    *(nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Hardswish, nn.Softsign),
    *(F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.tanh, F.hardswish, F.softsign),
    *(torch.tanh, "tanh"),
}
ELEMENTWISE = {  # each channel by itself, but 0 becomes something else
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid, torch.sigmoid, "sigmoid", F.sigmoid, F.hardsigmoid),
}
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, operator.isub, torch.sub, "sub", "sub_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
QUOTIENTS = {operator.truediv, operator.itruediv, torch.div, "div"}
CONCATENATIONS = {torch.cat, torch.concat}
MEANS = {torch.mean, "mean", torch.sum, "sum", torch.amax, "amax"}
FLATTENINGS = {torch.flatten, "flatten", "view", "reshape", torch.reshape}


def asks_for_no_channels(node: fx.Node) -> bool:
    """Whether `x.size(0)`, `x.shape[2]` and the like never read the number of channels."""
    if node.target == "size" and len(node.args) > 1:
        return isinstance(node.args[1], int) and (node.args[1] == 0 or node.args[1] > 1)
    if node.target == "dim" or node.args[1:] not in ((), ("shape",)):
        return True
    # `n, c, h, w = x.shape` may leave c unused
    read = [user for user in node.users if user.target is not operator.getitem or user.users]
    return all(
        user.target is operator.getitem and isinstance(user.args[1], int) and (user.args[1] == 0 or user.args[1] > 1)
        for user in read
    )


def reduces_no_channels(node: fx.Node) -> bool:
    dimensions = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    number = len(shape(node.all_input_nodes[0]) or ())
    listed = [dimensions] if isinstance(dimensions, int) else dimensions
    if not isinstance(listed, Sequence) or not listed:
        return False
    return all(isinstance(one, int) and one % number >= 2 for one in listed)


def takes_all_channels(node: fx.Node) -> bool:
    """Whether `x[:, :, ...]` leaves batch and channels alone, and no dimension is lost before them."""
    places = node.args[1]
    if not isinstance(places, tuple) or len(places) < 2:
        return places == slice(None)
    return all(place == slice(None) for place in places[:2]) and all(isinstance(p, slice | int) for p in places[2:])


def pads_no_channels(node: fx.Node) -> bool:
    """With zeros, height and width at most."""
    pads = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    names = ("value",) if node.target is torch.constant_pad_nd else ("mode", "value")
    given = dict(zip(names, node.args[2:], strict=False)) | node.kwargs
    number = len(shape(node.all_input_nodes[0]) or ())
    is_zero = bool(given.get("mode", "constant") != "constant" or given.get("value") in (None, 0))
    return isinstance(pads, Sequence) and len(pads) <= 2 * (number - 2) and is_zero


def has_hooks(module: nn.Module) -> bool:
    """Whether calling it may do something else than its class does."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def has_batches(node: fx.Node, function: Any) -> bool:
    """Whether the channels are in the second dimension: 2d operations take (C, H, W) as well as (N, C, H, W)."""
    kind = str(getattr(function, "__name__", function))[-2:]
    return kind not in ("1d", "2d", "3d") or len(shape(node) or ()) == int(kind[0]) + 2
