"""What if SynFlow scores by |dR/dw|, the gradient without the weight?

    python questions/gradient_only.py [--seeds 3] [--output FOLDER]

The score of a weight is then (what flows into it) * (what its end passes on), whatever the weight itself is.
"""

from __future__ import annotations

import asking
from torch import nn

from prunelab.pruning import Masks
from prunelab.pruning.criteria import SynFlow
from prunelab.pruning.diagnostics import collapsed_layers, effective_density

SCORES = {"w dR/dw": SynFlow(), "dR/dw": SynFlow(gradient_only=True)}
DENSITIES = (0.1, 0.01)


def live_units(masks: Masks) -> int:
    """How many units (rows, channels) of the hidden layers keep a weight coming in."""
    *hidden, _ = masks.values()
    return sum(int(mask.flatten(1).any(1).sum()) for mask in hidden)


def mean_size(net: nn.Module, masks: Masks) -> float:
    """Mean of |w| over the kept weights, in units of the layer's own mean of |w|: 1 is a blind choice."""
    parameters = dict(net.named_parameters())
    relative = [(w := parameters[name].detach().abs())[mask].sum() / w.mean() for name, mask in masks.items()]
    return float(sum(relative)) / masks.num_kept


def ask(seeds: int) -> asking.Answer:
    rows = []
    for title, make in asking.NETWORKS.items():
        for density in DENSITIES:
            for score in SCORES:
                found = []
                for seed in range(seeds):
                    net = asking.build(make, seed)
                    masks = asking.pruned(net, SCORES[score], density)
                    numbers = (live_units(masks), mean_size(net, masks), len(collapsed_layers(masks)))
                    effective = effective_density(net, masks, asking.EXAMPLE) / density
                    found.append((*numbers, effective, asking.trained(make, seed, masks)))
                units, sizes, dead, effectives, accuracies = zip(*found, strict=True)
                shown = [asking.spread(units, 0), asking.spread(sizes, 2), f"{sum(map(bool, dead))} of {seeds}"]
                shown += [f"{100 * sum(effectives) / seeds:.0f} %", asking.spread(accuracies)]
                rows.append([title, f"{density:g}", score, *shown])
    head = ["network", "density", "score", "live hidden units", "mean size of kept weights", "seeds with empty layer"]
    return asking.Answer(asking.table([*head, "effective", "accuracy"], rows))


if __name__ == "__main__":
    asking.main("gradient_only", ask, __doc__)
