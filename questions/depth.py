"""What if a network of the same size has ten times the layers?

    python questions/depth.py [--seeds 3] [--output FOLDER]

Fully connected: 3 layers of width 300 (112,200 weights) and 30 layers of width 62 (112,220). Maximal compression is
weights / layers; critical compression is the largest at which a criterion leaves no layer empty, found by bisection.
Accuracy at density 0.1, as pruned, and with the kept weights of a layer times one number, so that signals keep their
size.
"""

from __future__ import annotations

from functools import partial

import asking
import torch
from torch import nn

from prunelab.models import mlp
from prunelab.pruning import Masks, prunable_names
from prunelab.pruning.diagnostics import collapsed_layers

NETWORKS: dict[str, asking.Make] = {
    "3 layers": partial(mlp, in_channels=1, image_size=8, depth=3, width=300),
    "30 layers": partial(mlp, in_channels=1, image_size=8, depth=30, width=62),
}
DENSITY = 0.1
PRECISION = 1.05  # of a critical compression


def maximal_compression(net: nn.Module) -> float:
    masks = Masks.dense(net, prunable_names(net))
    return masks.num_weights / len(masks)


def critical_compression(net: nn.Module, criterion: str, seed: int) -> float:
    """The largest compression without an empty layer, to 5 %, supposing that beyond it there always is one."""
    low, high = 1.0, maximal_compression(net)
    if not collapsed_layers(asking.pruned(net, criterion, 1 / high, seed)):
        return high
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        collapses = bool(collapsed_layers(asking.pruned(net, criterion, 1 / middle, seed)))
        low, high = (low, middle) if collapses else (middle, high)
    return low


@torch.no_grad()
def rescale(net: nn.Module, inputs: torch.Tensor) -> None:
    """Multiply each layer's weights by one number, in place: outputs of mean square 2, of the last layer 1.

    2 is what Kaiming's initialisation gives. A layer that no signal reaches stays as it is.
    """
    *_, last = modules = list(net.children())
    for module in modules:
        if isinstance(module, nn.Linear):
            size = module(inputs).square().mean()
            if size > 0:
                module.weight *= ((1 if module is last else 2) / size).sqrt()
        inputs = module(inputs)


def ask(seeds: int) -> asking.Answer:
    rows = []
    inputs = asking.digits().train
    for title, make in NETWORKS.items():
        most = f"{maximal_compression(make()):.0f}"
        dense = [asking.train(asking.build(make, seed), None, seed) for seed in range(seeds)]
        rows.append([title, "dense", "-", most, "-", asking.spread(dense), "-"])
        for criterion in asking.CRITERIA:
            critical, outputs, plain, rescaled = [], [], [], []
            for seed in range(seeds):
                critical.append(critical_compression(asking.build(make, seed), criterion, seed))
                net = asking.build(make, seed)
                masks = asking.pruned(net, criterion, DENSITY, seed)
                plain.append(asking.trained(make, seed, masks))
                masks.apply_to(net)
                outputs.append(net(inputs).std().item())
                rescale(net, inputs)
                rescaled.append(asking.train(net, masks, seed))
            between = f"{min(critical):.0f} - {max(critical):.0f}"
            size = f"{min(outputs):.0e} - {max(outputs):.0e}"
            rows.append([title, f"`{criterion}`", between, most, size, asking.spread(plain), asking.spread(rescaled)])
    head = ["network", "criterion", "critical compression", "maximal", "outputs before training", "accuracy"]
    return asking.Answer(asking.table([*head, "accuracy, rescaled"], rows))


if __name__ == "__main__":
    asking.main("depth", ask, __doc__)
