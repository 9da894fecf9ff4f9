"""Which tensors an operation changes in place while others still read them."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn

from prunelab.compaction.index import BATCH_NORMS, CONVOLUTIONS

# what they give is new memory; of anything else the result may be a view of what it is given
_NEW_MODULES = (*CONVOLUTIONS, nn.Linear, *BATCH_NORMS)
_NEW_FUNCTIONS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div),
    *("add", "sub", "mul", "div", torch.cat, torch.concat),
}
_IN_PLACE = {
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow),
    *(operator.setitem, "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"),
}


def overwritten(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[fx.Node]:
    """Nodes whose tensor may not hold what their operation gave, since a later one writes into the same memory.

    `relu_(x)` and `out += x` on a tensor that nobody else reads are harmless and not among them.
    """
    sources = {node: _sources(node, modules) for node in graph.nodes}
    found: set[fx.Node] = set()
    for node in graph.nodes:
        for operand in _changed(node, modules):
            chain = [operand]
            for link in chain:
                chain.extend(source for source in sources[link] if source not in chain)
            if any(len(link.users) > 1 for link in chain):
                found.update(chain)
    for node in graph.nodes:  # in the order of computation
        if any(source in found for source in sources[node]):
            found.add(node)
    return found


def _sources(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """Whose memory the result may be."""
    if node.op == "call_module" and type(modules[str(node.target)]) in _NEW_MODULES:
        return []
    if node.op != "call_module" and node.target in _NEW_FUNCTIONS and "out" not in node.kwargs:
        return []
    return _changed(node, modules) or node.all_input_nodes


def _changed(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """Whose memory the operation writes to."""
    if node.op == "call_module":
        is_in_place = bool(getattr(modules[str(node.target)], "inplace", False))
    else:
        name = str(getattr(node.target, "__name__", node.target))
        is_activation = getattr(node.target, "__module__", None) == "torch.nn.functional"
        is_in_place = (
            node.target in _IN_PLACE
            or (node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__"))
            or bool(node.kwargs.get("inplace", False))
            or (is_activation and any(argument is True for argument in node.args[1:]))
        )
    out = node.kwargs.get("out")
    changed = node.all_input_nodes[:1] if is_in_place else []
    return [*changed, out] if isinstance(out, fx.Node) else changed
