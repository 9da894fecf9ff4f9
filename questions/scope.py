"""Shall layers compete with each other (global), or each keep the same share (layerwise)?

python questions/scope.py [--seeds 3] [--output FOLDER]
"""

from __future__ import annotations

import asking
from torch import Tensor

from prunelab.pruning.diagnostics import effective_density

CRITERIA = ("synflow", "snip", "magnitude")
DENSITIES = (0.1, 0.01)
SCOPES = ("global", "layerwise")


def live_outputs(mask: Tensor) -> int:
    """How many of a layer's channels (of the last layer: classes) keep a weight; mask (out, in, ...)."""
    return int(mask.flatten(1).any(1).sum())


def ask(seeds: int) -> asking.Answer:
    rows = []
    for criterion in CRITERIA:
        for density in DENSITIES:
            for scope in SCOPES:
                found = []
                for seed in range(seeds):
                    net = asking.build(asking.thin_vgg, seed)
                    masks = asking.pruned(net, criterion, density, scope=scope)
                    first, *_, last = masks.values()
                    effective = 100 * effective_density(net, masks, asking.EXAMPLE) / density
                    accuracy = asking.trained(asking.thin_vgg, seed, masks)
                    found.append((accuracy, effective, live_outputs(first), live_outputs(last)))
                accuracies, effectives, channels, classes = zip(*found, strict=True)
                shown = [f"{sum(effectives) / seeds:.0f} %", f"{min(channels)} - {max(channels)}"]
                shown += [f"{min(classes)} - {max(classes)}", asking.spread(accuracies)]
                rows.append([f"`{criterion}`", f"{density:g}", scope, *shown])
    head = ["criterion", "density", "scope", "effective", "first channels alive, of 16", "classes alive, of 10"]
    return asking.Answer(asking.table([*head, "accuracy"], rows))


if __name__ == "__main__":
    asking.main("scope", ask, __doc__)
