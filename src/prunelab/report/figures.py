"""Pictures of many runs: accuracy over compression, and how dense the layers are.

matplotlib Figures that no global state holds on to, two columns of a page wide, with legends outside of what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from prunelab.report.figure_style import STYLE, WIDTH, Look, add_legend, handle, looks, method_handles, plain_ticks
from prunelab.report.groups import Group
from prunelab.report.plots import layer_name
from prunelab.report.tidy import Row

PANEL_HEIGHT = 2.4
ABSCISSAS = {"compression": "compression ratio", "effective_compression": "effective compression ratio"}
CROSSES = 0.12  # of the height, below everything else: compressions without a result
MOST_NAMES = 60  # of layers, below each other


@rc_context(STYLE)
def accuracy_figure(
    found: Sequence[Group], measure: str = "test_accuracy", *, title: str = "", chance: float | None = None
) -> Figure:
    """Accuracy in % over compression (1 / density), and beside it over effective compression, both logarithmic; a pair
    of panels for each setting.

    One line for each method, those of one criterion with markers filled in different parts: the mean of the seeds,
    around it a band from the lowest to the highest; hollow where one of the networks has collapsed
    (`Group.collapsed`), at the right edge where none has a path left. The dense networks are a horizontal line. A cross
    at the bottom: some or all runs of this compression have no result, and no part in the mean. chance: fraction,
    dotted.
    """
    settings = list(dict.fromkeys(group.setting for group in found))
    styles = looks(group.method for group in found if not group.is_dense)
    pairs = 1 if len(settings) < 4 else 2  # in a row
    rows = -(-len(settings) // pairs)
    figure = Figure(figsize=(pairs * WIDTH, 1 + rows * PANEL_HEIGHT), layout="constrained")
    panels = figure.subplots(rows, 2 * pairs, squeeze=False).flat
    for place, setting in enumerate(settings):
        of_setting = [group for group in found if group.setting == setting]
        left, right = panels[2 * place : 2 * place + 2]
        right.sharey(left)
        for axes, abscissa in zip((left, right), ABSCISSAS, strict=True):
            axes.set(xlabel=ABSCISSAS[abscissa], title=setting)
            _draw_curves(axes, of_setting, abscissa, measure, styles)
            if chance is not None:
                axes.axhline(100 * chance, color="black", linestyle=":", linewidth=0.8)
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)
        left.set_ylabel("accuracy (%)")
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 0 else ""))
        if any(group.lacks_runs for group in of_setting):
            lowest, highest = left.get_ylim()
            left.set_ylim(highest - (highest - lowest) / (1 - CROSSES))
        right.tick_params(labelleft=False)
    for axes in panels[2 * len(settings) :]:
        axes.remove()
    add_legend(figure, title, _accuracy_handles(found, styles, chance))
    return figure


@rc_context(STYLE)
def layer_profiles_figure(
    found: Sequence[Group], layers: Sequence[Row], *, title: str = "", num_panels: int = 4
) -> Figure:
    """Density of every layer, from input to output, on a log axis: one line for each method, one panel for each of
    `num_panels` compressions, evenly spread over those that at least one run has.

    found: of one setting. layers: `Results.layers`. A point is the mean of the seeds; hollow where the layer keeps
    nothing in one of them, a cross at the bottom where it does in all. The dashed line is the density of the network.
    """
    found = [group for group in found if group.rows and not group.is_dense]
    of_level = _densities_of_levels(layers)
    names = list(dict.fromkeys(name for group in found for row in group.rows for name in of_level[_key(row)]))
    panels = _evenly_spread(found, num_panels)
    styles = looks(group.method for group in found)
    height = 0.8 + 1.4 * len(panels) + 0.06 * max((len(layer_name(name)) for name in names), default=0)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    rows = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, groups_here in zip(rows, panels, strict=True):
        for group in groups_here:
            seeds = np.array([[of_level[_key(row)].get(name, np.nan) for name in names] for row in group.rows])
            _draw_profile(axes, seeds, styles[group.method], list(styles).index(group.method) / len(styles))
        axes.set_yscale("log")
        if any(group.collapsed for group in groups_here):
            axes.set_ylim(bottom=axes.get_ylim()[0] / 2)  # for the crosses
        plain_ticks(axes.yaxis)
        axes.axhline(groups_here[0].density_kept, color="black", linestyle="--", linewidth=0.8)
        axes.set_title(f"compression {groups_here[0].compression:.4g}", loc="left")
    every = -(-len(names) // MOST_NAMES)
    rows[-1].set_xticks(range(0, len(names), every))
    rows[-1].set_xticklabels([layer_name(name) for name in names[::every]], rotation=90)
    figure.supylabel("density of the layer", fontsize=8)
    handles: list[Artist] = [*method_handles(styles), handle("whole network", "black", line="--")]
    if any(group.collapsed for group in found):
        handles += [handle("keeps nothing in some seeds", "black", "o", fill="white")]
        handles += [handle("keeps nothing in all seeds", "black", "x")]
    add_legend(figure, title, handles)
    return figure


def _draw_curves(axes: Axes, found: Sequence[Group], abscissa: str, measure: str, styles: dict[str, Look]) -> None:
    if dense := [
        100 * row[measure] for group in found if group.is_dense for row in group.rows if row[measure] is not None
    ]:
        axes.axhline(float(np.mean(dense)), color="black", linestyle="--", linewidth=1)
        axes.axhspan(min(dense), max(dense), color="black", alpha=0.1, linewidth=0)
    if abscissa == "compression":
        _cross_out(axes, [group for group in found if group.is_baseline], "black", 0.5)
    for index, (method, style) in enumerate(styles.items()):
        curve = [group for group in found if group.method == method and not group.is_baseline]
        points = sorted(_points(curve, abscissa, measure), key=lambda point: point[0])
        if finite := [point for point in points if point[0] < np.inf]:
            x, mean, lowest, highest, collapsed = (np.array(column) for column in zip(*finite, strict=True))
            axes.fill_between(x, lowest, highest, color=style.colour, alpha=0.18, linewidth=0)
            axes.vlines(x, lowest, highest, color=style.colour, linewidth=0.8, alpha=0.6)
            axes.plot(x, mean, style.line, color=style.colour, linewidth=1.3)
            for some, fill in ((~collapsed, style.colour), (collapsed, "white")):
                _mark(axes, x[some], mean[some], style, fill)
        if endless := [mean for x, mean, *_ in points if x == np.inf]:
            _mark(
                axes, [1] * len(endless), endless, style, "white", transform=axes.get_yaxis_transform(), clip_on=False
            )
            axes.set_xlabel(f"{ABSCISSAS[abscissa]} (right edge: no path left)")
        if abscissa == "compression":
            _cross_out(axes, curve, style.colour, (index + 0.5) / len(styles))


def _cross_out(axes: Axes, found: Sequence[Group], colour: str, lane: float) -> None:
    """lane: 0 to 1, so that the crosses of two methods do not hide each other."""
    without = [group.compression for group in found if group.lacks_runs and group.compression]
    heights, share = [CROSSES * lane] * len(without), axes.get_xaxis_transform()
    axes.plot(without, heights, "x", color=colour, markersize=5, transform=share)


def _mark(axes: Axes, x: Any, y: Any, look: Look, fill: str, **options: Any) -> None:
    marks: dict[str, Any] = {"markersize": 4.5, "fillstyle": look.part}
    marks |= {"markerfacecolor": fill, "markerfacecoloralt": "white"}
    axes.plot(x, y, look.marker, color=look.colour, **marks, **options)


def _points(curve: Sequence[Group], abscissa: str, measure: str) -> Iterator[tuple[float, float, float, float, bool]]:
    """compression, mean, lowest and highest accuracy in %, whether a layer has collapsed"""
    for group in curve:
        x = getattr(group, abscissa)
        values = [100 * row[measure] for row in group.rows if row[measure] is not None]
        if values and x is not None:
            yield x, float(np.mean(values)), min(values), max(values), group.collapsed


def _draw_profile(axes: Axes, seeds: np.ndarray, style: Look, lane: float) -> None:
    """seeds: [seeds, layers]; lane: 0 to 1, so that the crosses of two methods do not hide each other."""
    mean, places = seeds.mean(axis=0), np.arange(seeds.shape[1])
    dead, some_dead = mean == 0, (mean > 0) & (seeds == 0).any(axis=0)
    axes.plot(places, np.where(dead, np.nan, mean), style.line, color=style.colour, linewidth=1.1)
    for where, fill in ((~dead & ~some_dead, style.colour), (some_dead, "white")):
        _mark(axes, places[where], mean[where], style, fill)
    bottom = axes.get_xaxis_transform()
    axes.plot(
        places[dead], np.full(dead.sum(), 0.04 + 0.25 * lane), "x", color=style.colour, markersize=5, transform=bottom
    )


def _evenly_spread(found: Sequence[Group], at_most: int) -> list[list[Group]]:
    """The groups of some of the densities that there are, from the highest to the lowest."""
    alike: dict[float, list[Group]] = {}
    for group in sorted(found, key=lambda group: -group.budget):
        alike.setdefault(group.budget, []).append(group)
    densities = list(alike.values())
    if len(densities) <= at_most:
        return densities
    return [densities[round(place)] for place in np.linspace(0, len(densities) - 1, at_most)]


def _densities_of_levels(layers: Sequence[Row]) -> dict[tuple[str, int], dict[str, float]]:
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in layers:
        found.setdefault(_key(row), {})[row["layer"]] = row["density"]
    return found


def _key(row: Row) -> tuple[str, int]:
    return row["run_dir"], row["level"]


def _accuracy_handles(found: Sequence[Group], styles: dict[str, Look], chance: float | None) -> list[Artist]:
    """Those of what there is to see."""
    handles: list[Artist] = [*method_handles(styles)]
    if any(len(group.rows) > 1 for group in found):
        handles.append(Patch(color="black", alpha=0.18, linewidth=0, label="lowest to highest seed"))
    if any(group.is_dense and group.rows for group in found):
        handles.append(handle("dense", "black", line="--"))
    if chance is not None:
        handles.append(handle("chance", "black", line=":"))
    if any(group.collapsed for group in found):
        handles.append(handle("collapsed: dead layer or no path", "black", "o", fill="white"))
    if any(group.lacks_runs and group.density for group in found):
        handles.append(handle("some or all runs without a result", "black", "x"))
    return handles
