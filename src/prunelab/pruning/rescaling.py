"""Points of a network that every path from input to output crosses, and scaling a signal there.

Scaling at such a point multiplies the output, and with it every score, by one constant: the ranking stays. Factors are
powers of two, so nothing is rounded and scaled scores equal plain ones bit for bit up to that factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Nodes = list[Any]  # autograd graph nodes


def crossing_modules(net: nn.Module, run: Callable[[Tensor], Tensor], inputs: Tensor) -> list[nn.Module]:
    """The modules whose every output lies on all paths from the input to the output of `run(inputs)`.

    Read off the autograd graph of one forward pass: in topological order a node is crossed by every path if and only
    if no edge jumps over it. Passed over are modules that return something else than one tensor, and those that return
    their input: it may have other readers (a residual block's shortcut). Values play no role: the pass may overflow.
    """
    outputs: dict[nn.Module, Nodes] = {}

    def record(module: nn.Module, entering: tuple[Any, ...], output: Any) -> None:
        passed_on = any(output is tensor for tensor in entering)
        node = output.grad_fn if isinstance(output, Tensor) and not passed_on else None
        outputs.setdefault(module, []).append(node)

    handles = [module.register_forward_hook(record) for module in net.modules()]
    try:
        leaf = inputs.detach().requires_grad_()
        result = run(leaf).sum()
    finally:
        for handle in handles:
            handle.remove()
    crossed = _nodes_on_every_path(result.grad_fn, leaf)
    return [module for module, nodes in outputs.items() if all(node in crossed for node in nodes)]


def _nodes_on_every_path(end: Any, leaf: Tensor) -> set[Any]:
    order = _topological_order(end)
    reaches = set()
    for node in reversed(order):
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if getattr(node, "variable", None) is leaf or any(parent in reaches for parent in parents):
            reaches.add(node)
    live = [node for node in order if node in reaches]
    position = {node: index for index, node in enumerate(live)}
    crossed, furthest = set(), 0
    for index, node in enumerate(live):
        if furthest <= index:
            crossed.add(node)
        furthest = max([furthest, *(position[parent] for parent, _ in node.next_functions if parent in position)])
    return crossed


def _topological_order(end: Any) -> Nodes:
    """From `end` back to the leaves, each node before all it depends on (Kahn's algorithm; no recursion: deep nets)."""
    num_users: dict[Any, int] = {end: 0}
    stack = [end]
    while stack:
        for parent, _ in stack.pop().next_functions:
            if parent is not None:
                if parent not in num_users:
                    num_users[parent] = 0
                    stack.append(parent)
                num_users[parent] += 1
    order, ready = [], [end]
    while ready:
        node = ready.pop()
        order.append(node)
        for parent, _ in node.next_functions:
            if parent is not None:
                num_users[parent] -= 1
                if num_users[parent] == 0:
                    ready.append(parent)
    return order


@contextmanager
def scaled_at(modules: list[nn.Module]) -> Iterator[None]:
    """While active, the outputs of `modules` are multiplied by powers of two so that their maximum is in [.5, 1)."""

    def scale(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        exponent = math.frexp(output.detach().abs().amax().item())[1]
        # in two steps: a factor of its own could leave the floating range where the product does not
        return output * 2.0 ** (-(exponent // 2)) * 2.0 ** (exponent // 2 - exponent)

    handles = [module.register_forward_hook(scale) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
