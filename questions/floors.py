"""What if at least 10 % of each layer are kept?

    python questions/floors.py [--seeds 3] [--output FOLDER]

A floor below every layer (`min_layer_density`), for three criteria: none, a tenth of the network's density, and 10 %,
which fits only where the network keeps more than that.
"""

from __future__ import annotations

import asking

from prunelab.pruning.diagnostics import collapsed_layers

CRITERIA = ("synflow", "snip", "magnitude")
DENSITIES = (0.2, 0.01, 0.005)


def floors_of(density: float) -> list[float]:
    return [0.0, density / 10, *([0.1] if density > 0.1 else [])]


def ask(seeds: int) -> asking.Answer:
    rows = []
    for criterion in CRITERIA:
        for density in DENSITIES:
            accuracies: list[list[float]] = [[] for _ in floors_of(density)]
            lowest, num_dead = 1.0, 0
            for seed in range(seeds):
                for own, floor in zip(accuracies, floors_of(density), strict=True):
                    net = asking.build(asking.thin_vgg, seed)
                    masks = asking.pruned(net, criterion, density, min_layer_density=floor)
                    own.append(asking.trained(asking.thin_vgg, seed, masks))
                    if not floor:
                        lowest = min(lowest, *masks.layer_densities().values())
                        num_dead += bool(collapsed_layers(masks))
            cells = [asking.spread(own) for own in accuracies] + ["does not fit"] * (3 - len(accuracies))
            rows.append([f"`{criterion}`", f"{density:g}", f"{lowest:.2g}", f"{num_dead} of {seeds}", *cells])
    head = ["criterion", "density", "emptiest layer, no floor", "seeds with an empty one", "accuracy: no floor"]
    return asking.Answer(asking.table([*head, "floor a tenth of the density", "floor 10 %"], rows))


if __name__ == "__main__":
    asking.main("floors", ask, __doc__)
