"""The pictures, as matplotlib Figures that no global state holds on to. They are drawn from the rows of the CSVs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from prunelab.report.figure_style import STYLE, looks
from prunelab.report.plots import COLLAPSED, DENSE, KEPT

Row = Mapping[str, Any]
REFERENCE: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.2}
WORDS = {
    "random": "random",
    "magnitude": "magnitude",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "saliency": "SNIP, signed",
}


@rc_context(STYLE)
def layer_collapse_figure(
    layers: Sequence[str], exponents: Sequence[float], densities: Mapping[str, Sequence[Sequence[float]]], title: str
) -> Figure:
    """densities: criterion -> one list of layer densities for each exponent. A line is one compression ratio, dashed if
    any layer is empty; empty layers are red marks at the bottom."""
    figure, panels = _panels(
        len(densities), f"{title}: density of each layer at compression ratios $10^a$", (1.75, 3.0)
    )
    colours = _shades(len(exponents))
    positive = [value for lines in densities.values() for line in lines for value in line if value > 0]
    floor = min(positive, default=0.1) / 3
    positions = np.arange(len(layers))
    for axes, (name, lines) in zip(panels, densities.items(), strict=True):
        for colour, line in zip(colours, lines, strict=True):
            values = np.array(line)
            empty = values == 0
            style = "--" if empty.any() else "-"
            axes.plot(positions, np.where(empty, floor, values), style, color=colour, linewidth=1.1)
            axes.plot(positions[empty], np.full(empty.sum(), floor), "v", color=COLLAPSED, markersize=4, zorder=3)
        axes.set(
            yscale="log", title=WORDS[name], xlabel="layer", ylim=(floor / 1.6, 1.6), xlim=(-0.7, len(layers) - 0.3)
        )
        step = max(1, len(layers) // 6)
        axes.set_xticks(positions[::step], [str(place + 1) for place in positions[::step]])
    for axes in panels[1:]:
        axes.tick_params(labelleft=False)
    panels[0].set_ylabel("density (red: 0)")
    norm = BoundaryNorm(np.arange(len(exponents) + 1), len(exponents))
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=list(panels), pad=0.01, aspect=30)
    bar.set_ticks(list(np.arange(len(exponents)) + 0.5), labels=[f"{exponent:g}" for exponent in exponents])
    bar.ax.set_title("$a$")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return figure


@rc_context(STYLE)
def criteria_bars_figure(critical: Mapping[str, Sequence[float]], maximal: float, title: str) -> Figure:
    """critical: criterion -> critical compression of each seed. A bar is the median, a dot a seed."""
    figure, (axes,) = _panels(1, f"{title}: critical compression", (6.4, 0.9 + 0.45 * len(critical)))
    styles = looks(critical)
    for row, (name, ratios) in enumerate(critical.items()):
        middle = median_low(ratios)
        axes.barh(row, middle, 0.6, left=0, color=styles[name].colour, alpha=0.55)
        axes.plot(ratios, [row] * len(ratios), "o", color=styles[name].colour, markersize=5)
        axes.annotate(f"{middle:,.0f}", (max(ratios), row), (8, 0), textcoords="offset points", va="center")
    axes.axvline(maximal, **REFERENCE)
    axes.annotate(
        f"maximal: {maximal:,.0f}", (maximal, -0.42), (-5, 0), textcoords="offset points", ha="right", va="center"
    )
    axes.set(xscale="log", xlim=(1, maximal * 12), ylim=(len(critical) - 0.5, -0.7), xlabel="compression ratio")
    axes.set_yticks(range(len(critical)), [WORDS[name] for name in critical])
    return figure


@rc_context(STYLE)
def unit_conservation_figure(rows: Sequence[Row], title: str) -> Figure:
    """A dot is a hidden unit; absolute values of the sums, as those of signed scores may be negative."""
    groups = _groups(rows, "criterion")
    figure, panels = _panels(len(groups), f"{title}: scores into and out of each hidden unit", (2.7, 2.8), 3)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    colours = dict(zip(layers, _shades(len(layers)), strict=True))
    for axes, (name, of_criterion) in zip(panels, groups.items(), strict=True):
        incoming = np.abs([row["incoming"] for row in of_criterion])
        outgoing = np.abs([row["outgoing"] for row in of_criterion])
        drawn = (incoming > 0) & (outgoing > 0)
        if not drawn.any():
            continue
        shades = [colours[row["layer"]] for row, shown in zip(of_criterion, drawn, strict=True) if shown]
        axes.scatter(incoming[drawn], outgoing[drawn], s=4, c=shades, linewidths=0, rasterized=True)
        ends = np.array([min(incoming[drawn].min(), outgoing[drawn].min()), max(incoming.max(), outgoing.max())])
        axes.plot(ends, ends, **REFERENCE)
        worst = max(row["residual"] for row in of_criterion)
        axes.set(xscale="log", yscale="log", title=f"{WORDS[name]}\nlargest residual {worst:.1g}", xlabel="in")
        axes.set(xlim=(ends[0] / 2, ends[1] * 2), ylim=(ends[0] / 2, ends[1] * 2))
    for axes in panels[::3]:
        axes.set_ylabel("out")
    return figure


@rc_context(STYLE)
def layer_conservation_figure(rows: Sequence[Row], title: str) -> Figure:
    """A dot is a layer, hollow if its mean score is negative."""
    groups = _groups(rows, "criterion")
    figure, panels = _panels(len(groups), f"{title}: mean score against layer size", (2.7, 2.6), 3)
    styles = looks(groups)
    for axes, (name, of_criterion) in zip(panels, groups.items(), strict=True):
        sizes = np.array([row["layer_size"] for row in of_criterion], dtype=float)
        means = np.array([row["mean_score"] for row in of_criterion])
        _size_axes(axes, sizes, means, styles[name].colour)
        axes.set_title(f"{WORDS[name]}\nslope {of_criterion[0]['slope']:.2f}")
    for axes in panels[::3]:
        axes.set_ylabel("|mean score|")
    return figure


@rc_context(STYLE)
def training_conservation_figure(rows: Sequence[Row], epochs: Sequence[int], title: str) -> Figure:
    """A row for each training. Left: mean squares; middle: their growth; a dot is a layer after one of `epochs`.
    Right: slopes over epochs."""
    trainings = _groups(rows, "training")
    figure, panels = _panels(3 * len(trainings), f"{title}: mean squared weight of each layer", (3.1, 2.8), 3)
    for place, (training, of_training) in enumerate(trainings.items()):
        squares, growth, slopes = panels[3 * place : 3 * place + 3]
        groups = _groups(of_training, "epoch")
        for colour, epoch in zip(_shades(len(epochs)), epochs, strict=True):
            sizes = np.array([row["layer_size"] for row in groups[epoch]], dtype=float)
            for axes, value in ((squares, "mean_square"), (growth, "growth")):
                means = np.array([row[value] for row in groups[epoch]])
                if means.any():
                    _size_axes(axes, sizes, means, colour, f"epoch {epoch}", line=epoch == epochs[-1])
        squares.set(ylabel="mean of w²", title=training)
        growth.set(ylabel="|growth|", title="growth since initialisation (hollow: < 0)")
        firsts = [of_epoch[0] for of_epoch in groups.values()]
        for value, style, colour, label in (
            ("slope", "o-", KEPT, "squares"),
            ("slope_of_growth", "s--", DENSE, "growth"),
        ):
            x = [row["epoch"] for row in firsts]
            slopes.plot(x, [row[value] for row in firsts], style, color=colour, markersize=3, label=label)
        slopes.axhline(-1, **REFERENCE)
        slopes.set(xlabel="epoch", ylabel="log-log slope", title="slope (dotted: -1)", ylim=(-1.3, 0))
        slopes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        slopes.legend(loc="upper right")
    dots, labels = panels[0].get_legend_handles_labels()
    figure.legend(dots, labels, loc="outside lower center", ncols=len(epochs))
    return figure


@rc_context(STYLE)
def schedule_figure(rows: Sequence[Row], title: str) -> Figure:
    """Largest share of the flow that a round drops; below the dotted line no layer can collapse. Crosses: collapsed."""
    groups = _groups(rows, "schedule")
    words = (
        "largest share of the flow that a round of SynFlow drops\nred: layers collapse; below the dotted line none can"
    )
    figure, panels = _panels(len(groups), f"{title}: {words}", (3.9, 3.7))
    exponents = list(dict.fromkeys(row["exponent"] for row in rows))
    colours = dict(zip(exponents, _shades(len(exponents)), strict=True))
    for axes, (kind, of_schedule) in zip(panels, groups.items(), strict=True):
        for exponent, line in _groups(of_schedule, "exponent").items():
            x = np.array([row["rounds"] for row in line])
            y = np.array([row["largest_share_dropped"] for row in line])
            dead = np.array([row["num_collapsed"] > 0 for row in line])
            axes.plot(x, y, "-", color=colours[exponent], linewidth=1.1)
            axes.plot(x[~dead], y[~dead], "o", color=colours[exponent], markersize=5, label=f"$10^{{{exponent:g}}}$")
            axes.plot(x[dead], y[dead], "X", color=COLLAPSED, markersize=7)
        axes.axhline(1, **REFERENCE)
        axes.set(xscale="log", yscale="log", xlabel="rounds", title=kind)
        rounds = sorted({row["rounds"] for row in of_schedule})
        axes.set_xticks(rounds, [str(number) for number in rounds])
        axes.xaxis.set_minor_locator(NullLocator())
    shares = [row["largest_share_dropped"] for row in rows if row["largest_share_dropped"] > 0]
    for axes in panels:
        axes.set_ylim(min(shares) / 2, max(shares) * 2)
    panels[0].set_ylabel("share of the flow")
    handles = [panels[0].plot([], [], "o-", color=colours[e], label=f"$10^{{{e:g}}}$")[0] for e in exponents]
    panels[-1].legend(handles=handles, title="compression")
    return figure


def _size_axes(
    axes: Axes, sizes: np.ndarray, means: np.ndarray, colour: Any, label: str | None = None, line: bool = True
) -> None:
    """Dots of |means| over sizes, those below 0 hollow, on log axes; a line of slope -1 through their middle."""
    for sign, fill in ((means > 0, colour), (means < 0, "none")):
        if sign.any():
            axes.scatter(sizes[sign], np.abs(means[sign]), s=22, facecolors=fill, edgecolors=[colour], label=label)
            label = None
    if line:
        drawn, ends = means != 0, np.array([sizes.min(), sizes.max()])
        axes.plot(ends, np.exp(np.mean(np.log(np.abs(means[drawn]) * sizes[drawn]))) / ends, **REFERENCE)
    axes.set(xscale="log", yscale="log", xlabel="weights in the layer")


def _panels(
    number: int, title: str, size: tuple[float, float], columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Panels of `size` = (width, height) in inches, row by row."""
    columns = min(columns or number, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(size[0] * columns + 0.6, size[1] * rows + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[number:]:
        spare.remove()
    return figure, panels[:number]


def _groups(rows: Sequence[Row], key: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _shades(number: int) -> list[Any]:
    return [colormaps["viridis_r"](0.08 + 0.92 * place / max(number - 1, 1)) for place in range(number)]
