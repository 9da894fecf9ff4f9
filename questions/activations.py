"""How far does conservation fail with other activations than ReLU?

    python questions/activations.py [--seeds 3] [--output FOLDER]

Theorem of the paper: with an activation f(z) = f'(z) z, the scores w dR/dw coming into a hidden unit (its bias among
them) sum to those going out, for any R of the output. Two R here, for LeNet-300-100 with its activation exchanged and
biases drawn at random: the loss on 100 digits, and the sum of outputs with absolute weights on ones, as in SynFlow.
Of one unit that sees one input: in / out = z f'(z) / f(z).
And what it costs: accuracy after pruning with scores of the network with its own activations, and, prunelab's default,
with the identity in their place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import asking
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelab.pruning.criteria import SynFlow
from prunelab.pruning.diagnostics import collapsed_layers

DENSITY = 0.05
WAYS: dict[str, tuple[Literal["own", "identity"], int]] = {
    "own, 1 round": ("own", 1),
    "own, 100 rounds": ("own", 100),
    "identity, 100 rounds": ("identity", 100),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "leaky ReLU": lambda: nn.LeakyReLU(0.1),
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "tanh": nn.Tanh,
}


def with_activation(net: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """The same network, its ReLUs exchanged."""
    children = [(name, make() if isinstance(child, nn.ReLU) else child) for name, child in net.named_children()]
    return nn.Sequential(OrderedDict(children))


def sums(net: nn.Module, total: Tensor) -> tuple[Tensor, Tensor]:
    """(in, out): scores w dR/dw of each hidden unit's incoming and outgoing parameters, R = `total`."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    weights = torch.autograd.grad(total, [layer.weight for layer in layers], retain_graph=True)
    biases = torch.autograd.grad(total, [layer.bias for layer in layers])
    pairs = list(zip(layers, weights, biases, strict=True))
    coming = [(layer.weight * w).sum(1) + layer.bias * b for layer, w, b in pairs[:-1]]
    going = [(layer.weight * w).sum(0) for layer, w, _ in pairs[1:]]
    return torch.cat(coming).detach(), torch.cat(going).detach()


def residual(coming: Tensor, going: Tensor) -> float:
    """sum |in - out| / sum (|in| + |out|) over the units: 0 = conserved, 1 = nothing in common."""
    return ((coming - going).abs().sum() / (coming.abs() + going.abs()).sum()).item()


def of_loss(net: nn.Module) -> tuple[Tensor, Tensor]:
    ((inputs, labels),) = asking.scoring_batch()
    return sums(net, cross_entropy(net(inputs.double()), labels))


def of_flow(net: nn.Module) -> tuple[Tensor, Tensor]:
    """With absolute weights, in place, and no biases."""
    for name, parameter in net.named_parameters():
        parameter.data = parameter.data.abs() if name.endswith("weight") else torch.zeros_like(parameter)
    return sums(net, net(torch.ones(1, 1, 8, 8, dtype=torch.float64)).sum())


def trained(
    make: Callable[[], nn.Module], seed: int, activations: Literal["own", "identity"], rounds: int
) -> tuple[float, int]:
    """Accuracy in %, and how many layers SynFlow emptied."""
    net = with_activation(asking.build(asking.lenet, seed), make)
    masks = asking.pruned(net, SynFlow(rounds, activations=activations), DENSITY)
    return asking.train(net, masks, seed), len(collapsed_layers(masks))


def ask(seeds: int) -> asking.Answer:
    rows, scattered = [], {}
    for name, make in ACTIVATIONS.items():
        on_loss, on_flow = [], []
        for seed in range(seeds):
            net = with_activation(asking.build(asking.lenet, seed), make).double()
            for layer in net.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.bias, std=0.1)
            scattered[name] = of_loss(net)
            on_loss.append(residual(*scattered[name]))
            on_flow.append(residual(*of_flow(net)))
        cells = [f"{sum(on_loss) / seeds:.2g}", f"{sum(on_flow) / seeds:.2g}"]
        for way in WAYS.values():
            accuracies, empty = zip(*(trained(make, seed, *way) for seed in range(seeds)), strict=True)
            note = f", empty layer in {sum(map(bool, empty))}" if any(empty) else ""
            cells.append(asking.spread(accuracies) + note)
        rows.append([name, *cells])
    head = ["activation", "residual, R = loss on digits", "residual, R as in SynFlow"]
    return asking.Answer(asking.table([*head, *WAYS], rows), _figure(scattered))


def _figure(scattered: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    figure = Figure((9, 2.4), layout="constrained")
    for axes, (name, (coming, going)) in zip(figure.subplots(1, len(scattered)), scattered.items(), strict=True):
        largest = float(np.abs(np.concatenate([coming, going])).max())
        axes.plot([-largest, largest], [-largest, largest], color="#b9b9b9", lw=1)
        axes.plot(coming, going, ".", ms=3, color="#12436d")
        axes.set(xticks=[0], yticks=[0], xlabel="scores in", ylabel="scores out")
        axes.set_title(name, fontsize=9)
    return figure


if __name__ == "__main__":
    asking.main("activations", ask, __doc__)
