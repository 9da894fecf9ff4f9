"""Pictures of masks, scores and levels, as matplotlib Figures that no global state holds on to.

A caller shows one (a notebook's last expression), saves it (`figure.savefig`), or hands it to TensorBoard.
Layer names are parameter names; in pictures they lose their ".weight".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

KEPT, PRUNED, GRID, COLLAPSED = "#12436d", "#f3f3f3", "#b9b9b9", "#d7191c"
DENSE, EFFECTIVE = "#d95f02", "#8fb3d1"
MASK_PIXELS = 520  # longer side of a mask picture; larger layers are drawn as kept counts, then one pixel a kernel
DPI = 100


def layer_name(parameter: str) -> str:
    """Return the parameter's name without ".weight": `layer1.0.conv1`."""
    return parameter.removesuffix(".weight")


def layer_densities_figure(runs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of the density of every layer, on a log axis, one colour per run (label -> layer -> density).

    Layers stand in the order of the first run, input at the top. A collapsed layer has a red mark in place of a bar.
    """
    layers = list(dict.fromkeys(layer for densities in runs.values() for layer in densities))
    figure = _figure_of_rows(len(layers))
    axes = figure.subplots()
    positive = [density for densities in runs.values() for density in densities.values() if density > 0]
    floor = 10.0 ** np.floor(np.log10(min(positive, default=0.1)) - 0.01)
    height = 0.8 / len(runs)
    for position, (label, densities) in enumerate(runs.items()):
        rows = np.arange(len(layers)) + (position - (len(runs) - 1) / 2) * height
        values = np.array([densities.get(layer, np.nan) for layer in layers])
        axes.barh(rows, np.maximum(values, floor) - floor, height, left=floor, label=label)
        dead = values == 0
        if dead.any():  # the layout would leave room for an empty line at the figure's corner
            axes.plot(np.full(dead.sum(), floor), rows[dead], ">", color=COLLAPSED, clip_on=False, zorder=3)
    axes.set_xscale("log")
    axes.set(xlim=(floor, 1.1), ylim=(len(layers) - 0.4, -0.6), xlabel="density of the layer (kept / weights)")
    _name_rows(axes, layers)
    axes.grid(axis="x", alpha=0.3)
    if len(runs) > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=min(len(runs), 3))
    else:
        axes.set_title(next(iter(runs)))
    return figure


def density_rounds_figure(layers: Sequence[str], densities: np.ndarray) -> Figure:
    """Heat map of the densities [rounds, layers], rounds from left to right; collapsed layers are red."""
    figure = _figure_of_rows(len(layers))
    axes = figure.subplots()
    kept = np.ma.masked_less_equal(densities.T, 0)
    lowest = min(float(kept.min()), 0.5) if kept.count() else 0.5
    image = axes.imshow(
        kept,
        aspect="auto",
        interpolation="nearest",
        norm=LogNorm(lowest, 1),
        cmap="viridis",
        extent=(0.5, len(densities) + 0.5, len(layers) - 0.5, -0.5),
    )
    axes.set_facecolor(COLLAPSED)  # seen through the masked cells
    _name_rows(axes, layers)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="round", title="density of each layer after each round")
    figure.colorbar(image, ax=axes, location="bottom", aspect=40, pad=0.02, label="density (red: 0)")
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
                10**ends, 10 ** (tilt * ends + height), style, color=DENSE if style == "-" else "black", label=label
            )
    axes.set(xscale="log", yscale="log", xlabel="weights in the layer", ylabel="mean score", title=title)
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend()
    return figure, slope


def accuracy_over_density_figure(
    densities: Sequence[float],
    accuracies: Sequence[float | None],
    effective_densities: Sequence[float | None],
    title: str,
) -> Figure:
    """Accuracy (fractions, drawn in %) of the levels of a run over their density, dense on the left.

    The density below and the compression ratio = 1 / density above are logarithmic. The first level of density 1 is a
    horizontal line too, to read off which sparse levels reach it. A light mark stands at the effective density of a
    level, where that is defined, above 0 and not the density itself. Levels without accuracy are left out.
    """
    drawn = [
        (density, 100 * accuracy, effective)
        for density, accuracy, effective in zip(densities, accuracies, effective_densities, strict=True)
        if accuracy is not None
    ]
    figure = Figure(figsize=(7, 4.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    dense = next((accuracy for density, accuracy, _ in drawn if density == 1), None)
    if dense is not None:
        axes.axhline(dense, color=DENSE, linestyle="--", linewidth=1.2, label=f"dense, {dense:.2f} %")
    marks = [(effective, accuracy) for density, accuracy, effective in drawn if effective and effective != density]
    if marks:
        axes.plot(*zip(*marks, strict=True), "D", color=EFFECTIVE, markersize=5, label="at its effective density")
    if drawn:
        axes.plot([d for d, _, _ in drawn], [a for _, a, _ in drawn], "o-", color=KEPT, label="level")
    lowest = min([density for density, _, _ in drawn] + [effective for effective, _ in marks], default=0.1)
    left, right = 1.08, lowest / 1.08
    axes.set(xscale="log", xlim=(left, right), xlabel="density", ylabel="accuracy (%)")
    compression = axes.twiny()
    compression.set(xscale="log", xlim=(1 / left, 1 / right), xlabel="compression ratio")
    for axis in (axes.xaxis, compression.xaxis):
        axis.set_major_locator(LogLocator(subs=_tick_digits(lowest)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend()
    return figure


def kernel_masks_figure(name: str, mask: Tensor) -> Figure:
    """Mask of a convolution [out, in, kh, kw], one tile per kernel.

    Row = output channel, column = input channel; kept weights are dark. In layers too large for tiles each
    kernel is one point, darker for more kept weights.
    """
    out_channels, in_channels, height, width = mask.shape
    kept = mask.cpu().numpy()
    scale = min((MASK_PIXELS // out_channels - 1) // height, (MASK_PIXELS // in_channels - 1) // width)
    tiled = scale > 0
    if tiled:
        tile_height, tile_width = height * scale + 1, width * scale + 1  # with a line of the grid
        tiles = np.full((out_channels, in_channels, tile_height, tile_width), 2)
        tiles[:, :, :-1, :-1] = kept.repeat(scale, axis=2).repeat(scale, axis=3)
        pixels = tiles.transpose(0, 2, 1, 3).reshape(out_channels * tile_height, in_channels * tile_width)
    else:
        pixels = kept.sum(axis=(2, 3))
        scale = max(1, MASK_PIXELS // max(pixels.shape))
        pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)

    # The axes are exactly as many pixels as the picture: any other size would make uneven tiles.
    left, bottom, top, right = 60, 50, 56, 20
    num_rows, num_columns = pixels.shape
    total_width, total_height = max(left + num_columns + right, 400), bottom + num_rows + top
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
        fontsize=11,
    )
    return figure


def _tick_digits(lowest: float) -> tuple[float, ...]:
    """The multiples of powers of ten that have room on a log axis from `lowest` to 1."""
    if lowest > 0.3:
        return (1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    return (1, 2, 5) if lowest > 1e-3 else (1,)


def _figure_of_rows(num_layers: int) -> Figure:
    return Figure(figsize=(7, min(2 + 0.26 * num_layers, 18)), dpi=DPI, layout="constrained")


def _name_rows(axes: Axes, layers: Sequence[str], at_most: int = 60) -> None:
    step = -(-len(layers) // at_most)
    axes.yaxis.set_ticks(range(0, len(layers), step), [layer_name(layer) for layer in layers[::step]])
