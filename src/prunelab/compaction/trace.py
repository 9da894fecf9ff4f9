"""The network as a graph of operations with the shapes of their results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from prunelab.compaction.errors import CompactionError
from prunelab.compaction.index import is_channel_pad
from prunelab.pruning.scoring import evaluation_mode


class _Tracer(fx.Tracer):
    """Goes into every module that is not torch's own, and takes channel pads as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_channel_pad(m) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Notes the shape of each tensor that a node gives."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def traced(net: nn.Module, example_input: Tensor) -> fx.Graph:
    """The operations of the network's `forward`; `shape(node)` tells what they give for `example_input`.

    Raises: CompactionError if `forward` depends on values, cannot be run on the example, or is another one in training.
    """
    graphs = [_graph(net, training) for training in (True, False)]
    training, evaluation = ([_call(node) for node in graph.nodes] for graph in graphs)
    if training != evaluation:
        raise CompactionError("the network's forward does other things in training than in evaluation")
    graph = graphs[1]
    # buffers that a forward pass writes to are those of the network
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        with evaluation_mode(net), torch.no_grad():
            _Shapes(fx.GraphModule(net, graph)).run(example_input)
    except Exception as error:  # whatever the forward of a user's network raises
        raise CompactionError(f"the network cannot be run on the example: {first_line(error)}") from error
    finally:
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(buffers[name])
    return graph


def shape(node: fx.Node) -> tuple[int, ...] | None:
    """Of the tensor that the node gives; None if it gives something else."""
    found: tuple[int, ...] | None = node.meta.get("shape")
    return found


def _graph(net: nn.Module, training: bool) -> fx.Graph:
    flags = {module: module.training for module in net.modules()}
    try:
        for module in flags:
            module.training = training
        return _Tracer().trace(net)
    except Exception as error:  # torch.fx.TraceError and whatever a forward raises when it is given no values
        raise CompactionError(f"the network cannot be traced: {first_line(error)}") from error
    finally:
        for module, flag in flags.items():
            module.training = flag


def _call(node: fx.Node) -> tuple[str, ...]:
    """What is called, and with what but the switch between training and evaluation."""
    arguments = node.args[:1] if "dropout" in str(getattr(node.target, "__name__", "")) else node.args
    keywords = {name: value for name, value in node.kwargs.items() if name != "training"}
    return node.op, str(node.target), repr(arguments), repr(keywords)


def first_line(error: BaseException) -> str:
    lines: list[Any] = str(error).strip().splitlines() or [type(error).__name__]
    return str(lines[0])
