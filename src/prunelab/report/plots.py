"""Pictures of masks, scores and levels, as matplotlib Figures that no global state holds on to.

They are drawn between two trainings, so those of every level take their margins from the length of their labels and not
from matplotlib's layout, which draws everything three times, and have plain numbers at their ticks.
A caller shows one (a notebook's last expression), saves it (`figure.savefig`), or hands it to TensorBoard.
Layer names are parameter names; in pictures they lose their ".weight".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

KEPT, PRUNED, GRID, COLLAPSED = "#12436d", "#f3f3f3", "#b9b9b9", "#d7191c"
DENSE, EFFECTIVE = "#d95f02", "#8fb3d1"
MASK_PIXELS = 520  # longer side of a mask picture; larger layers are drawn as kept counts, then one pixel a kernel
MOST_SHADES = 250  # a picture has 256 colours
MARGIN = 8  # pixels around a mask picture
DPI = 100
CHARACTER = 0.085  # inches, of a wide one among the labels


def layer_name(parameter: str) -> str:
    """Return the parameter's name without ".weight": `layer1.0.conv1`."""
    return parameter.removesuffix(".weight")


def layer_densities_figure(runs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of the density of every layer, on a log axis, one colour per run (label -> layer -> density).

    Layers stand in the order of the first run, input at the top. A collapsed layer has a red mark in place of a bar.
    """
    layers = list(dict.fromkeys(layer for densities in runs.values() for layer in densities))
    longest = max((len(layer_name(layer)) for layer in layers), default=0)
    legend_lines = -(-len(runs) // 3)
    figure, axes = _axes(7, _rows_height(len(layers)), 0.2 + CHARACTER * longest, top=0.2 + 0.25 * legend_lines)
    positive = [density for densities in runs.values() for density in densities.values() if density > 0]
    floor = 10.0 ** np.floor(np.log10(min(positive, default=0.1)) - 0.01)
    height = 0.8 / len(runs)
    for position, (label, densities) in enumerate(runs.items()):
        rows = np.arange(len(layers)) + (position - (len(runs) - 1) / 2) * height
        values = np.array([densities.get(layer, np.nan) for layer in layers])
        axes.barh(rows, np.maximum(values, floor) - floor, height, left=floor, label=label)
        dead = values == 0
        if dead.any():
            axes.plot(np.full(dead.sum(), floor), rows[dead], ">", color=COLLAPSED, clip_on=False, zorder=3)
    axes.set_xscale("log")
    axes.set(xlim=(floor, 1.1), ylim=(len(layers) - 0.4, -0.6), xlabel="density of the layer (kept / weights)")
    _plain_ticks(axes.xaxis)
    _name_rows(axes, layers)
    axes.grid(axis="x", alpha=0.3)
    if len(runs) > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=min(len(runs), 3))
    else:
        axes.set_title(next(iter(runs)), y=1)
    return figure


def density_rounds_figure(layers: Sequence[str], densities: np.ndarray) -> Figure:
    """Heat map of the densities [rounds, layers], rounds from left to right; collapsed layers are red."""
    figure = Figure(figsize=(7, _rows_height(len(layers))), dpi=DPI, layout="constrained")
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
    figure, axes = _axes(6.4, 4.8, left=0.9)
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
    axes.set(xscale="log", yscale="log", xlabel="weights in the layer", ylabel="mean score")
    axes.set_title(title, y=1)
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis)
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
    figure, axes = _axes(7, 4.8, left=0.7, top=0.85)
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
    compression.xaxis.set_label_coords(0.5, 1 + 0.3 / 3.35)
    for axis in (axes.xaxis, compression.xaxis):
        axis.set_major_locator(LogLocator(subs=_tick_digits(lowest)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title(title, y=1 + 0.45 / 3.35)
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend()
    return figure


def kernel_masks_picture(name: str, mask: Tensor) -> Image.Image:
    """Mask of a convolution [out, in, kh, kw], one tile per kernel, with text above; a picture of few colours.

    Row = output channel, column = input channel; kept weights are dark. In layers too large for tiles each
    kernel is one point, darker for more kept weights.
    """
    # no Figure: there are many of these, between two trainings, and matplotlib takes 60 ms for each, this 4
    out_channels, in_channels, height, width = mask.shape
    kept = mask.cpu().numpy()
    scale = min((MASK_PIXELS // out_channels - 1) // height, (MASK_PIXELS // in_channels - 1) // width)
    tiled = scale > 0
    if tiled:
        tile_height, tile_width = height * scale + 1, width * scale + 1  # with a line of the grid
        tiles = np.full((out_channels, in_channels, tile_height, tile_width), 2, dtype=np.uint8)
        tiles[:, :, :-1, :-1] = kept.repeat(scale, axis=2).repeat(scale, axis=3)
        pixels = tiles.transpose(0, 2, 1, 3).reshape(out_channels * tile_height, in_channels * tile_width)
        colours = [PRUNED, KEPT, GRID]
    else:
        scale = max(1, MASK_PIXELS // max(out_channels, in_channels))
        count = kept.sum(axis=(2, 3))
        shades = min(height * width, MOST_SHADES)
        pixels = -(-count * shades // (height * width))  # rounded up: only a kernel without a weight is white
        pixels = pixels.astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
        colours = _shades(shades)
    shade = "" if tiled else f" (shade: kept of {height * width})"
    text = (
        f"{layer_name(name)}: {height} x {width} kernels{shade}\nrows: output channels, columns: input channels\n"
        f"{int(kept.sum()):,} of {kept.size:,} kept, density {kept.mean():.4g}"
    )
    white, black = len(colours), len(colours) + 1
    font = _font()
    text_size = ImageDraw.Draw(Image.new("1", (1, 1))).multiline_textbbox((0, 0), text, font)[2:]
    left, top = MARGIN, int(text_size[1]) + 2 * MARGIN
    size = (max(pixels.shape[1], int(text_size[0])) + 2 * MARGIN, pixels.shape[0] + top + MARGIN)
    picture = Image.new("L", size, white)
    picture.paste(Image.fromarray(pixels), (left, top))
    draw = ImageDraw.Draw(picture)
    draw.fontmode = "1"  # values between two colours would be any others
    draw.multiline_text((left, MARGIN), text, black, font)
    picture.putpalette(b"".join(bytes.fromhex(colour.lstrip("#")) for colour in (*colours, "#ffffff", "#000000")))
    return picture


@cache
def _font() -> Any:
    return ImageFont.load_default()  # which unpacks it at each call


def _shades(most: int) -> list[str]:
    """From PRUNED to KEPT in `most` steps."""
    ends = [np.array(list(bytes.fromhex(colour.lstrip("#")))) for colour in (PRUNED, KEPT)]
    mixed = (np.round(ends[0] + (ends[1] - ends[0]) * step / most).astype(np.uint8) for step in range(most + 1))
    return [bytes(colour).hex() for colour in mixed]


def _tick_digits(lowest: float) -> tuple[float, ...]:
    """The multiples of powers of ten that have room on a log axis from `lowest` to 1."""
    if lowest > 0.3:
        return (1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    return (1, 2, 5) if lowest > 1e-3 else (1,)


def _rows_height(num_layers: int) -> float:
    return min(2 + 0.26 * num_layers, 18)


def _axes(
    width: float, height: float, left: float, top: float = 0.4, bottom: float = 0.6, right: float = 0.2
) -> tuple[Figure, Axes]:
    """A figure of that size and its axes, with margins in inches; at least half of it is for what is drawn.

    The labels have their places: matplotlib would look for them by measuring every text around.
    """
    figure = Figure(figsize=(width, height), dpi=DPI)
    left = min(left, width / 2)
    inner_width, inner_height = width - left - right, height - top - bottom
    axes = figure.add_axes((left / width, bottom / height, inner_width / width, inner_height / height))
    axes.xaxis.set_label_coords(0.5, (0.25 - bottom) / inner_height)
    axes.yaxis.set_label_coords((0.2 - left) / inner_width, 0.5)
    return figure, axes


def _plain_ticks(axis: Axis) -> None:
    """Of a log axis: 1e-05, as matplotlib sets its raised exponents as mathematics, slowly; and few, for short axes."""
    lowest, highest = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 100 * lowest else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _name_rows(axes: Axes, layers: Sequence[str], at_most: int = 60) -> None:
    step = -(-len(layers) // at_most)
    axes.yaxis.set_ticks(range(0, len(layers), step), [layer_name(layer) for layer in layers[::step]])
