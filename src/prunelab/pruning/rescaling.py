"""Points of a network that every path from input to output crosses, and scaling a signal there.

Scaling at such a point multiplies the output, and with it every score, by one constant: the ranking stays. Factors are
powers of two, so nothing is rounded and scaled scores equal plain ones bit for bit up to that factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Nodes = list[Any]  # autograd graph nodes
Factors = dict[tuple[nn.Module, int], tuple[float, float]]  # of a module's calls in a pass, counted from 0
MODERATE = 30  # the exponent, in base 2, up to which a signal needs no scaling


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


class InRange:
    """R = sum of `run(inputs)`, or R times a power of two if R leaves the range of floating point in which neither it
    nor its gradients can overflow; then the signal is scaled at the points that all paths cross.

    The factors are held until R leaves the range again: a network that only loses weights seldom makes it. On other
    devices than the CPU, where asking for R would wait, the signal is scaled always, and anew in each pass.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._crossed: list[nn.Module] | None = None
        self._factors: Factors = {}

    def total(self, run: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        if inputs.device.type != "cpu":
            if self._crossed is None:
                self._crossed = crossing_modules(self._net, run, inputs)
            with scaled_at(self._crossed):
                return run(inputs).sum()
        total = self._scaled(run, inputs)
        limits = torch.finfo(total.dtype)
        if limits.tiny**0.5 < total.item() < limits.max**0.5:
            return total
        if self._crossed is None:
            self._crossed = crossing_modules(self._net, run, inputs)
        self._factors.clear()
        return self._scaled(run, inputs)

    def _scaled(self, run: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        unscaled = {module for module in self._crossed or [] if self._is_left_alone(module)}
        with scaled_at([m for m in self._crossed or [] if m not in unscaled], self._factors, MODERATE):
            return run(inputs).sum()

    def _is_left_alone(self, module: nn.Module) -> bool:
        held = [factors for (owner, _), factors in self._factors.items() if owner is module]
        return bool(held) and all(factors == (1.0, 1.0) for factors in held)


@contextmanager
def scaled_at(modules: list[nn.Module], held: Factors | None = None, moderate: int = -1) -> Iterator[None]:
    """While active, the outputs of `modules` are multiplied by powers of two so that their maximum is in [.5, 1).

    held: factors of each call that are taken as they are, and where new ones are put. moderate: exponents, base 2, up
    to this one in both directions are left as they are.
    """

    num_calls = dict.fromkeys(modules, 0)  # a module may be called several times in a pass

    def scale(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if held is None and output.device.type != "cpu":
            return _scaled_on_device(output)
        call = module, num_calls[module]
        num_calls[module] += 1
        factors = held.get(call) if held is not None else None
        if factors is None:
            factors = _factors(output.detach().abs().amax().item(), moderate)
            if held is not None:
                held[call] = factors
        for factor in factors:
            output = output * factor if factor != 1 else output
        return output

    handles = [module.register_forward_hook(scale) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _factors(largest: float, moderate: int) -> tuple[float, float]:
    """Two where one could leave the floating range although the product does not."""
    exponent = math.frexp(largest)[1]
    if abs(exponent) <= moderate:
        return 1.0, 1.0
    if abs(exponent) < 100:  # float32 reaches from -126 to 127
        return 2.0**-exponent, 1.0
    return 2.0 ** (-(exponent // 2)), 2.0 ** (exponent // 2 - exponent)


def _scaled_on_device(output: Tensor) -> Tensor:
    """With factors that the host does not wait for."""
    largest = output.detach().abs().amax()
    exponent = largest.frexp().exponent
    half = exponent // 2
    return output * _power_of_two(-half, output.dtype) * _power_of_two(half - exponent, output.dtype)


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2^exponent, made of its bits: functions of a device may round."""
    if dtype == torch.float64:
        return ((exponent.long() + 1023) << 52).view(torch.float64)
    return ((exponent.int() + 127) << 23).view(torch.float32).to(dtype)
