"""Is it all in the layer ratios? Random masks with SynFlow's layer densities.

    python questions/layer_ratios.py [--seeds 3] [--output FOLDER]

"in its units": random among the weights between units (channels) that SynFlow's mask leaves alive, layer densities as
SynFlow's. The other controls are random with ERK's layer densities and with equal ones.
"""

from __future__ import annotations

import asking
import torch
from matplotlib.figure import Figure
from torch import nn

from prunelab.pruning import Masks, keep_highest, score
from prunelab.pruning.criteria import Erk, Random
from prunelab.pruning.diagnostics import effective_density

DENSITIES = (0.1, 0.03, 0.01)
KINDS = ("synflow", "random, its layer densities", "random, in its units", "random, ERK", "random, equal densities")


def live_block(mask: torch.Tensor) -> torch.Tensor:
    """All weights between the input and output units that keep a weight of `mask`, (out, in, ...)."""
    flat = mask.flatten(2) if mask.dim() > 2 else mask[..., None]
    block = flat.any(2).any(1)[:, None] & flat.any(2).any(0)[None, :]
    return block.view(*block.shape, *[1] * (mask.dim() - 2)).expand(mask.shape)


def masks_for(net: nn.Module, density: float, seed: int) -> dict[str, Masks]:
    flow = asking.pruned(net, "synflow", density)
    block = Masks({name: live_block(mask) for name, mask in flow.items()})
    draws = score(net, Random(), example_input=asking.EXAMPLE, generator=torch.Generator().manual_seed(seed))
    kinds = (
        flow,
        asking.pruned(net, "random", density, seed, allocation=flow.layer_densities()),
        keep_highest(draws, flow.layer_densities(), block),
        asking.pruned(net, Erk(), density, seed),
        asking.pruned(net, "random", density, seed, scope="layerwise"),
    )
    return dict(zip(KINDS, kinds, strict=True))


def ask(seeds: int) -> asking.Answer:
    rows = []
    curves: dict[str, dict[str, list[tuple[float, ...]]]] = {}
    for title, make in asking.NETWORKS.items():
        for density in DENSITIES:
            found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
            for seed in range(seeds):
                for kind, masks in masks_for(asking.build(make, seed), density, seed).items():
                    effective = effective_density(make(), masks, asking.EXAMPLE) / density
                    found[kind].append((asking.trained(make, seed, masks), effective))
            cells = []
            for kind, pairs in found.items():
                accuracies, effectives = zip(*pairs, strict=True)
                cells.append(f"{asking.spread(accuracies)} ({100 * sum(effectives) / seeds:.0f} %)")
                curves.setdefault(title, {}).setdefault(kind, []).append(accuracies)
            rows.append([title, f"{density:g}", *cells])
    return asking.Answer(asking.table(["network", "density", *KINDS], rows), _figure(curves))


def _figure(curves: dict[str, dict[str, list[tuple[float, ...]]]]) -> Figure:
    figure = Figure((9, 3.2), layout="constrained")
    for axes, (title, kinds) in zip(figure.subplots(1, 2, sharey=True), curves.items(), strict=True):
        for kind, seeds in kinds.items():
            values = torch.tensor(seeds)
            axes.errorbar(DENSITIES, values.mean(1), values.std(1), capsize=3, marker=".", label=kind)
        axes.set(xscale="log", xlabel="density", title=title, xticks=DENSITIES, xticklabels=map(str, DENSITIES))
        axes.minorticks_off()
        axes.grid(color="#e0e0e0")
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[0].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    asking.main("layer_ratios", ask, __doc__)
