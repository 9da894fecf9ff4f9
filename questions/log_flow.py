"""What does log R do as a regulariser during training?

    python questions/log_flow.py [--seeds 3] [--output FOLDER]

Loss = cross-entropy + strength * log R, R the sum of outputs with absolute weights and no biases on ones. Of log R each
layer's weights have the same total share, d log R / d log|w| summed over a layer is 1, whatever the layer's size.
After training LeNet-300-100 is pruned in one round, by magnitude or by SynFlow's score, and tested as it is.
"""

from __future__ import annotations

import copy

import asking
import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunelab.pruning import Criterion, prune

PENALTIES: dict[str, tuple[str, float]] = {
    "none": ("log R", 0.0),
    **{f"{strength:g} log R": ("log R", strength) for strength in (-0.03, 0.03, 0.1, 0.3, 1, 3)},
    **{f"{strength:g} sum of abs(w)": ("l1", strength) for strength in (3e-4, 1e-3, 3e-3)},
}
DENSITIES = (0.2, 0.1, 0.05)


def log_flow(net: nn.Module) -> Tensor:
    """log R, differentiable; for networks of linear layers, convolutions, ReLU and pooling."""
    weights = {n: p.abs() if n.endswith("weight") else torch.zeros_like(p) for n, p in net.named_parameters()}
    ones = torch.ones_like(asking.EXAMPLE, dtype=next(net.parameters()).dtype)
    return functional_call(net, weights, (ones,)).sum().log()


def penalty_of(kind: str, strength: float, net: nn.Module) -> Tensor:
    if kind == "log R":
        return strength * log_flow(net)
    return strength * torch.stack([p.abs().sum() for n, p in net.named_parameters() if n.endswith("weight")]).sum()


def pruned_accuracy(net: nn.Module, criterion: Criterion, density: float) -> float:
    """Of a pruned copy, without further training, in %."""
    pruned = copy.deepcopy(net)
    prune(net, criterion, density=density, example_input=asking.EXAMPLE, rounds=1).apply_to(pruned)
    return asking.accuracy(pruned)


def ask(seeds: int) -> asking.Answer:
    rows = []
    criteria = ("magnitude", "synflow")
    for title, (kind, strength) in PENALTIES.items():
        dense, flows = [], []
        pruned: dict[tuple[str, float], list[float]] = {(c, d): [] for c in criteria for d in DENSITIES}
        for seed in range(seeds):
            net = asking.build(asking.lenet, seed)
            penalty = (lambda net, kind=kind, strength=strength: penalty_of(kind, strength, net)) if strength else None
            dense.append(asking.train(net, None, seed, penalty=penalty))
            flows.append(log_flow(net).item())
            for (criterion, density), accuracies in pruned.items():
                accuracies.append(pruned_accuracy(net, asking.CRITERIA[criterion], density))
        cells = [asking.spread(accuracies) for accuracies in pruned.values()]
        rows.append([title, asking.spread(flows), asking.spread(dense), *cells])
    head = ["penalty", "log R at the end", "dense", *(f"`{c}` {d:g}" for c in criteria for d in DENSITIES)]
    return asking.Answer(asking.table(head, rows))


if __name__ == "__main__":
    asking.main("log_flow", ask, __doc__)
