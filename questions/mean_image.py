"""What if SynFlow's input is the mean picture in place of ones?

    python questions/mean_image.py [--seeds 3] [--output FOLDER]

`mean_abs`: the mean of |x|, of normalised pictures, in which black is not 0,
and of grey levels in 0..1, in which it is.
"""

from __future__ import annotations

import asking
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from prunelab.pruning import Masks
from prunelab.pruning.criteria import SynFlow
from prunelab.pruning.diagnostics import mask_overlap

INPUTS = {"ones": (), "mean of abs, normalised": (True,), "mean of grey levels": (False,)}
DENSITIES = (0.1, 0.01)


def masks_for(net: nn.Module, density: float, pictures: Tensor | None) -> Masks:
    """SynFlow's masks with ones, or with the mean of |pictures| (N, C, H, W), as its input."""
    if pictures is None:
        return asking.pruned(net, "synflow", density)
    batches = [(pictures, torch.zeros(len(pictures)))]
    return asking.pruned(net, SynFlow(input="mean_abs"), density, batches=batches)


def kept_by_pixel(masks: Masks) -> Tensor:
    """(8, 8): how many first-layer weights of LeNet-300-100 read each pixel."""
    return masks["fc1.weight"].sum(0).view(8, 8)


def ask(seeds: int) -> asking.Answer:
    rows = []
    maps: dict[str, Tensor] = {}
    ink = asking.digits(normalised=False).train.mean(0).flatten()
    faint = ink.argsort()[:16]  # the quarter of the pixels with the least ink
    for title, make in asking.NETWORKS.items():
        for density in DENSITIES:
            for name, kind in INPUTS.items():
                accuracies, overlaps, on_faint = [], [], []
                for seed in range(seeds):
                    net = asking.build(make, seed)
                    pictures = asking.digits(*kind).train if kind else None
                    masks = masks_for(net, density, pictures)
                    overlaps.append(mask_overlap(masks, masks_for(net, density, None)))
                    if "fc1.weight" in masks:
                        by_pixel = kept_by_pixel(masks)
                        on_faint.append(100 * (by_pixel.flatten()[faint].sum() / by_pixel.sum()).item())
                        if density == DENSITIES[-1]:
                            maps[name] = maps.get(name, torch.zeros(8, 8)) + by_pixel / seeds
                    accuracies.append(asking.trained(make, seed, masks))
                share = f"{asking.spread(on_faint)} %" if on_faint else "-"
                overlap = asking.spread(overlaps, 3) if kind else "-"
                rows.append([title, f"{density:g}", name, overlap, share, asking.spread(accuracies)])
    head = ["network", "density", "input", "overlap with ones' mask", "first layer on the 16 faintest pixels"]
    return asking.Answer(asking.table([*head, "accuracy"], rows), _figure(maps, ink.view(8, 8)))


def _figure(maps: dict[str, Tensor], ink: Tensor) -> Figure:
    figure = Figure((9, 2.6), layout="constrained")
    shown = {"mean picture": ink, **{f"input: {name}": values for name, values in maps.items()}}
    for axes, (title, values) in zip(figure.subplots(1, 4), shown.items(), strict=True):
        image = axes.imshow(values, cmap="gray" if title == "mean picture" else "Blues", vmin=0)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=8)
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


if __name__ == "__main__":
    asking.main("mean_image", ask, __doc__)
