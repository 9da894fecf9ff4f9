"""Pictures of masks and scores, as matplotlib Figures that no global state holds on to.

A caller shows one (a notebook's last expression), saves it (`figure.savefig`), or hands it to TensorBoard.
Layer names are parameter names; in pictures they lose their ".weight".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

KEPT, PRUNED, GRID, COLLAPSED = "#12436d", "#f3f3f3", "#b9b9b9", "#d7191c"
MASK_PIXELS = 520  # longer side of a mask picture; larger layers are drawn as kept counts, then one pixel a kernel
DPI = 100


def layer_name(parameter: str) -> str:
    """Return the parameter's name without ".weight": `layer1.0.conv1`."""
    return parameter.removesuffix(".weight")


def layer_densities_figure(runs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of the density of every layer, on a log axis, one colour per run (label -> layer -> density).

    Layers stand in the order of the first run. A collapsed layer has no bar but a red mark at the foot.
    """
    layers = list(dict.fromkeys(layer for densities in runs.values() for layer in densities))
    figure = Figure(figsize=(min(4 + 0.3 * len(layers), 20), 4.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    positive = [density for densities in runs.values() for density in densities.values() if density > 0]
    floor = 10.0 ** np.floor(np.log10(min(positive, default=0.1)) - 0.01)
    width = 0.8 / len(runs)
    for position, (label, densities) in enumerate(runs.items()):
        x = np.arange(len(layers)) + (position - (len(runs) - 1) / 2) * width
        heights = np.array([densities.get(layer, np.nan) for layer in layers])
        axes.bar(x, np.maximum(heights, floor) - floor, width, bottom=floor, label=label)
        dead = heights == 0
        if dead.any():
            axes.plot(x[dead], np.full(dead.sum(), floor), "v", color=COLLAPSED, clip_on=False, zorder=3)
    axes.set_yscale("log")
    axes.set_ylim(floor, 1.1)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_ylabel("density (kept / weights)")
    _name_ticks(axes, "x", layers, at_most=60)
    axes.grid(axis="y", alpha=0.3)
    if len(runs) > 1:
        axes.legend()
    else:
        axes.set_title(f"density of each layer: {next(iter(runs))}")
    return figure


def density_rounds_figure(layers: Sequence[str], densities: np.ndarray) -> Figure:
    """Heat map of the densities [rounds, layers], rounds from left to right; collapsed layers are red."""
    num_rounds = len(densities)
    figure = Figure(figsize=(9, min(2 + 0.24 * len(layers), 16)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    kept = np.ma.masked_less_equal(densities.T, 0)
    lowest = min(float(kept.min()), 0.5) if kept.count() else 0.5
    image = axes.imshow(
        kept,
        aspect="auto",
        interpolation="nearest",
        norm=LogNorm(lowest, 1),
        cmap="viridis",
        extent=(0.5, num_rounds + 0.5, len(layers) - 0.5, -0.5),
    )
    axes.set_facecolor(COLLAPSED)  # seen through the masked cells
    _name_ticks(axes, "y", layers, at_most=60)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", title="density of each layer after each round")
    figure.colorbar(image, ax=axes, label="density of the layer (red: 0)")
    return figure


def conservation_figure(means: Mapping[str, float], sizes: Mapping[str, int], title: str) -> tuple[Figure, float]:
    """Mean score of each layer against its number of weights, log-log, with the slope of a line.

    A criterion that conserves its score from layer to layer (SynFlow; Tanaka et al. 2020, section 4) has the
    same sum in every layer, so mean = constant / size: slope -1. Means that are 0 cannot be drawn and are
    left out; those below 0 are drawn by their absolute value, hollow.
    The slope is the median over all pairs of layers (Theil-Sen), which the shortcuts of a residual network,
    carrying but a part of the sum, do not tilt; it is nan with fewer than two different sizes.
    """
    drawn = [layer for layer in means if means[layer] != 0]
    x = np.array([sizes[layer] for layer in drawn], dtype=float)
    y = np.array([means[layer] for layer in drawn], dtype=float)
    figure = Figure(figsize=(6.4, 4.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for sign, fill, label in ((y > 0, KEPT, "layer"), (y < 0, "none", "layer, mean below 0")):
        if sign.any():
            axes.scatter(x[sign], np.abs(y[sign]), s=36, facecolors=fill, edgecolors=KEPT, alpha=0.7, label=label)
    slope = float("nan")
    if len(set(x)) > 1:
        log_x, log_y = np.log10(x), np.log10(np.abs(y))
        run, rise = np.subtract.outer(log_x, log_x), np.subtract.outer(log_y, log_y)
        slope = float(np.median(rise[run > 0] / run[run > 0]))
        ends = np.array([log_x.min(), log_x.max()])
        for tilt, style, label in ((slope, "-", f"median slope {slope:.3f}"), (-1, ":", "conserved: slope -1")):
            height = np.median(log_y - tilt * log_x)
            axes.plot(
                10**ends, 10 ** (tilt * ends + height), style, color="#d95f02" if style == "-" else "black", label=label
            )
    axes.set(xscale="log", yscale="log", xlabel="weights in the layer", ylabel="mean score", title=title)
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend()
    return figure, slope


def kernel_masks_figure(name: str, mask: Tensor) -> Figure:
    """Mask of a convolution [out, in, kh, kw], one tile per kernel.

    Row = output channel, column = input channel; kept weights are dark. In layers too large for tiles each
    kernel is one point, darker for more kept weights.
    """
    out_channels, in_channels, height, width = mask.shape
    kept = mask.cpu().numpy()
    tiled = max(out_channels * (height + 1), in_channels * (width + 1)) <= MASK_PIXELS
    if tiled:
        tiles = np.full((out_channels, in_channels, height + 1, width + 1), 2)  # 2: the grid between kernels
        tiles[:, :, :height, :width] = kept
        pixels = tiles.transpose(0, 2, 1, 3).reshape(out_channels * (height + 1), in_channels * (width + 1))
    else:
        pixels = kept.sum(axis=(2, 3))
    scale = max(1, MASK_PIXELS // max(pixels.shape))
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)

    # The axes are exactly as many pixels as the picture: any other size would make uneven tiles.
    left, bottom, top, right = 60, 50, 50, 20
    num_rows, num_columns = pixels.shape
    total_width, total_height = max(left + num_columns + right, 420), bottom + num_rows + top
    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI)
    axes = figure.add_axes(
        (left / total_width, bottom / total_height, num_columns / total_width, num_rows / total_height)
    )
    axes.imshow(
        pixels,
        cmap=ListedColormap([PRUNED, KEPT, GRID]) if tiled else "Blues",
        vmin=0,
        vmax=2 if tiled else height * width,
        interpolation="nearest",
        aspect="auto",
        extent=(-0.5, in_channels - 0.5, out_channels - 0.5, -0.5),
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlabel("input channel")
    axes.set_ylabel("output channel")
    shade = "" if tiled else f" (shade: kept of {height * width})"
    figure.text(
        8 / total_width,
        1 - 8 / total_height,
        f"{layer_name(name)}: {height} x {width} kernels{shade}\n"
        f"{int(kept.sum()):,} of {kept.size:,} kept, density {kept.mean():.4g}",
        va="top",
        fontsize=10,
    )
    return figure


def _name_ticks(axes: Axes, which: str, layers: Sequence[str], at_most: int) -> None:
    step = -(-len(layers) // at_most)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(range(0, len(layers), step), [layer_name(layer) for layer in layers[::step]], fontsize=8)
    if which == "x":
        axes.tick_params(axis="x", rotation=90)
