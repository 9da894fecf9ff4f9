"""Pictures of masks, scores and levels.

A caller shows one (a notebook's last expression), saves it (`picture.save`), or hands it to TensorBoard.
Layer names are parameter names; in pictures they lose their ".weight".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from prunelab.report.chart import BLACK, Axis, Chart, Point, below, spanning, text_width

KEPT, PRUNED, GRID, COLLAPSED = "#12436d", "#f3f3f3", "#b9b9b9", "#d7191c"
DENSE, EFFECTIVE = "#d95f02", "#8fb3d1"
RUNS = (KEPT, "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e")  # colours of runs, in turn
WIDTH = 700
MOST_ROWS = 60  # with a name
MASK_PIXELS = 520  # longer side of a mask picture; larger layers are drawn as kept counts, then one pixel a kernel
MOST_SHADES = 250  # a picture has 256 colours
MARGIN = 8  # pixels around a mask picture


def layer_name(parameter: str) -> str:
    """Return the parameter's name without ".weight": `layer1.0.conv1`."""
    return parameter.removesuffix(".weight")


def layer_densities_figure(runs: Mapping[str, Mapping[str, float]]) -> Image.Image:
    """Bars of the density of every layer, on a log axis, one colour per run (label -> layer -> density).

    Layers stand in the order of the first run, input at the top. A collapsed layer has a red mark in place of a bar.
    """
    layers = list(dict.fromkeys(layer for densities in runs.values() for layer in densities))
    positive = [density for densities in runs.values() for density in densities.values() if density > 0]
    floor = 10.0 ** np.floor(np.log10(min(positive, default=0.1)) - 0.01)
    many = len(runs) > 1
    chart = Chart(
        Axis(floor, 1.1, "density of the layer (kept / weights)", log=True),
        _rows(layers, 0.1),
        size=(WIDTH, _rows_height(len(layers))),
        title="" if many else next(iter(runs)),
        left=_names_width(layers),
        top=18 * len(runs) + 14 if many else 40,
    )
    height = 0.8 / len(runs)
    for index, densities in enumerate(runs.values()):
        for row, layer in enumerate(layers):
            above = row - 0.4 + index * height
            if (density := densities.get(layer)) == 0:
                chart.points([(floor, above + height / 2)], COLLAPSED, "triangle")
            elif density is not None:
                chart.bar((floor, above), (density, above + height), RUNS[index % len(RUNS)])
    if many:
        chart.legend([(label, RUNS[index % len(RUNS)], "square") for index, label in enumerate(runs)], "above")
    return chart.picture()


def density_rounds_figure(layers: Sequence[str], densities: np.ndarray) -> Image.Image:
    """Heat map of the densities [rounds, layers], rounds from left to right; collapsed layers are red."""
    kept = densities.T
    lowest = min(kept[kept > 0].min(), 0.5) if (kept > 0).any() else 0.5
    shares = 1 - np.log(np.maximum(kept, lowest)) / np.log(lowest)
    colours = colormaps["viridis"](shares, bytes=True)[..., :3]
    colours[kept <= 0] = list(bytes.fromhex(COLLAPSED[1:]))
    num_rounds, left = len(densities), _names_width(layers)
    chart = Chart(
        Axis(0.5, num_rounds + 0.5, "round", ticks=[(n, str(n)) for n in _some_rounds(num_rounds)]),
        _rows(layers, 0),
        size=(WIDTH, _rows_height(len(layers))),
        title="density of each layer after each round",
        left=left,
    )
    chart.cells(colours)
    scale = Axis(lowest, 1, "density (red: 0)", log=True)
    legend = Chart(scale, Axis(0, 1, ticks=()), size=(WIDTH, 75), left=left, top=10, bottom=50)
    legend.cells(colormaps["viridis"](np.linspace(0, 1, 256)[None], bytes=True)[..., :3])
    return below(chart.picture(), legend.picture())


def conservation_figure(means: Mapping[str, float], sizes: Mapping[str, int], title: str) -> tuple[Image.Image, float]:
    """Mean score of each layer against its number of weights, log-log, with the slope of a line.

    A criterion that conserves its score from layer to layer (SynFlow; Tanaka et al. 2020, section 4) has the
    same sum in every layer, so mean = constant / size: slope -1. Means that are 0 cannot be drawn and are
    left out; those below 0 are drawn by their absolute value, hollow.
    The slope is the median over all pairs of layers (Theil-Sen), which the shortcuts of a residual network,
    carrying but a part of the sum, do not tilt; it is nan with fewer than two different sizes.
    """
    drawn = [layer for layer in means if means[layer] != 0]
    x = np.array([sizes[layer] for layer in drawn], dtype=float)
    y = np.array([abs(means[layer]) for layer in drawn], dtype=float)
    slope = float("nan")
    lines: list[list[Point]] = []
    if len(set(x)) > 1:
        log_x, log_y = np.log10(x), np.log10(y)
        run, rise = np.subtract.outer(log_x, log_x), np.subtract.outer(log_y, log_y)
        slope = float(np.median(rise[run > 0] / run[run > 0]))
        for tilt in (slope, -1):
            height = np.median(log_y - tilt * log_x)
            ends = np.array([log_x.min(), log_x.max()])
            heights = np.clip(tilt * ends + height, -300, 300)  # of steep ones: what a float can hold
            lines.append(list(zip(10**ends, 10**heights, strict=True)))
    chart = Chart(
        spanning(list(x), "weights in the layer", log=True),
        spanning([*y, *(height for line in lines for _, height in line)], "mean score", log=True),
        size=(640, 480),
        title=title,
        left=95,
    )
    below_0 = [layer for layer in drawn if means[layer] < 0]
    for layer, *place in zip(drawn, x, y, strict=True):
        chart.points([(place[0], place[1])], KEPT, "ring" if layer in below_0 else "circle")
    entries: list[Any] = [("layer", KEPT, "circle")] if len(below_0) < len(drawn) else []
    entries += [("layer, mean below 0", KEPT, "ring")] if below_0 else []
    if lines:
        chart.line(lines[0], DENSE)
        chart.line(lines[1], BLACK, dash=3)
        entries += [(f"median slope {slope:.3f}", DENSE, "line"), ("conserved: slope -1", BLACK, "dashes")]
    if entries:
        chart.legend(entries, "right")
    return chart.picture(), slope


def accuracy_over_density_figure(
    densities: Sequence[float],
    accuracies: Sequence[float | None],
    effective_densities: Sequence[float | None],
    title: str,
) -> Image.Image:
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
    marks = [(effective, accuracy) for density, accuracy, effective in drawn if effective and effective != density]
    lowest = min([density for density, _, _ in drawn] + [effective for effective, _ in marks], default=0.1)
    left, right = 1.08, lowest / 1.08
    chart = Chart(
        Axis(left, right, "density", log=True),
        spanning([accuracy for _, accuracy, _ in drawn], "accuracy (%)"),
        size=(WIDTH, 480),
        title=title,
        top_x=Axis(1 / left, 1 / right, "compression ratio", log=True),
        top=80,
    )
    entries: list[Any] = []
    dense = next((accuracy for density, accuracy, _ in drawn if density == 1), None)
    if dense is not None:
        chart.line([(left, dense), (right, dense)], DENSE, dash=6)
        entries.append((f"dense, {dense:.2f} %", DENSE, "dashes"))
    if marks:
        chart.points(marks, EFFECTIVE, "diamond")
        entries.append(("at its effective density", EFFECTIVE, "diamond"))
    if drawn:
        levels = [(density, accuracy) for density, accuracy, _ in drawn]
        chart.line(levels, KEPT)
        chart.points(levels, KEPT)
        chart.legend([*entries, ("level", KEPT, "circle")], "left")
    return chart.picture()


def kernel_masks_picture(name: str, mask: Tensor) -> Image.Image:
    """Mask of a convolution [out, in, kh, kw], one tile per kernel, with text above; a picture of few colours.

    Row = output channel, column = input channel; kept weights are dark. In layers too large for tiles each
    kernel is one point, darker for more kept weights.
    """
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
    text = text.encode("latin-1", "replace").decode("latin-1")  # all that the font has
    white, dark = len(colours), colours.index(KEPT)  # no other colour for the text: of four, a pixel takes two bits
    font = _font()
    text_size = ImageDraw.Draw(Image.new("1", (1, 1))).multiline_textbbox((0, 0), text, font)[2:]
    left, top = MARGIN, int(text_size[1]) + 2 * MARGIN
    size = (max(pixels.shape[1], int(text_size[0])) + 2 * MARGIN, pixels.shape[0] + top + MARGIN)
    picture = Image.new("L", size, white)
    picture.paste(Image.fromarray(pixels), (left, top))
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((left, MARGIN), text, dark, font)
    picture.putpalette(b"".join(bytes.fromhex(colour.lstrip("#")) for colour in (*colours, "#ffffff")))
    return picture


@cache
def _font() -> Any:
    return ImageFont.load_default_imagefont()  # of pixels: values between two colours would be any others


def _shades(most: int) -> list[str]:
    """From PRUNED to KEPT in `most` steps."""
    ends = [np.array(list(bytes.fromhex(colour.lstrip("#")))) for colour in (PRUNED, KEPT)]
    mixed = (np.round(ends[0] + (ends[1] - ends[0]) * step / most).astype(np.uint8) for step in range(most + 1))
    return [f"#{bytes(colour).hex()}" for colour in mixed]


def _rows(layers: Sequence[str], margin: float) -> Axis:
    """An axis with a row for each layer, the first one on top."""
    step = -(-len(layers) // MOST_ROWS)
    names = [(row, layer_name(layers[row])) for row in range(0, len(layers), max(step, 1))]
    return Axis(len(layers) - 0.5 + margin, -0.5 - margin, ticks=names)


def _rows_height(num_layers: int) -> int:
    return min(200 + 26 * num_layers, 1800)


def _names_width(layers: Sequence[str]) -> float:
    return 15 + max((text_width(layer_name(layer)) for layer in layers), default=0)


def _some_rounds(num_rounds: int) -> list[int]:
    """At most ten of them, evenly spread."""
    step = next(s * 10**power for power in range(9) for s in (1, 2, 5) if num_rounds <= 10 * s * 10**power)
    return list(range(step, num_rounds + 1, step))
