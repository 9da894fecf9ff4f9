"""How pictures of many runs look: colours, letters, legends, ticks, files.

A criterion has the same colour and marker in all of them; the colours can be told apart by colour-blind readers (after
Okabe and Ito, and Paul Tol).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

WIDTH = 7.0  # inches, of a page
STYLE: dict[Any, Any] = {
    **{"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 150},
}
LEGEND_COLUMNS = 5
LETTER, SYMBOL = 0.054, 0.55  # inches, of a legend's letter on average, and of what stands before its label
MOST_TICKS = 12
MOST_LETTERS = 100  # of a title, in a line as wide as a page

_KNOWN = {
    "synflow": ("#0072b2", "o"),
    "snip": ("#009e73", "^"),
    "grasp": ("#cc79a7", "D"),
    "magnitude": ("#e69f00", "s"),
    "random": ("#7f7f7f", "v"),
    "force": ("#d55e00", "X"),
    "iterative_snip": ("#332288", "<"),
    "lamp": ("#56b4e9", "P"),
    "erk": ("#999933", "p"),
    "mask_criterion": ("#882255", ">"),
}
_OTHERS = (("#44aa99", "h"), ("#ddcc77", "d"), ("#aa4499", "*"), ("#661100", "8"))
_LINES = ("-", "--", "-.", ":")
_PARTS = ("full", "left", "top", "right", "bottom")  # of a marker, that is filled


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    line: Any  # matplotlib's word for its style
    part: Any  # matplotlib's word for how much of the marker is filled


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Method -> how it is drawn: colour and marker of its criterion; among those of the same one a line of its own and,
    as a single point has no line, a part of the marker that is filled."""
    chosen: dict[str, Look] = {}
    variants: dict[str, int] = {}
    unknown: list[str] = []
    for method in dict.fromkeys(methods):
        criterion = method.partition(",")[0]
        if criterion not in _KNOWN and criterion not in unknown:
            unknown.append(criterion)
        known = _KNOWN.get(criterion) or _OTHERS[unknown.index(criterion) % len(_OTHERS)]
        variants[criterion] = variants.get(criterion, -1) + 1
        number = variants[criterion]
        chosen[method] = Look(*known, _LINES[number % len(_LINES)], _PARTS[number % len(_PARTS)])
    return chosen


def handle(
    label: str, colour: str, marker: str = "", line: Any = "", fill: str | None = None, part: Any = "full"
) -> Line2D:
    marks: dict[str, Any] = {"marker": marker, "markersize": 5, "fillstyle": part}
    marks |= {"markerfacecolor": fill or colour, "markerfacecoloralt": "white"}
    return Line2D([], [], color=colour, linestyle=line, label=label, **marks)


def method_handles(styles: dict[str, Look]) -> list[Line2D]:
    return [handle(method, look.colour, look.marker, look.line, part=look.part) for method, look in styles.items()]


def add_legend(figure: Figure, title: str, handles: Sequence[Artist]) -> None:
    """Above everything that is drawn, in as few rows as there is room for."""
    labels = [str(handle.get_label()) for handle in handles]
    rows = -(-len(labels) // LEGEND_COLUMNS)
    while rows < len(labels) and _width(labels, -(-len(labels) // rows)) > figure.get_figwidth():
        rows += 1
    columns = -(-len(labels) // rows)
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)
    if title:
        legend.set_title(textwrap.fill(title, MOST_LETTERS))
        legend.get_title().set(fontsize=9, multialignment="center")


def _width(labels: Sequence[str], columns: int) -> float:
    """Of a legend, in inches, as matplotlib fills its columns."""
    parts = np.array_split(np.array([len(label) for label in labels]), columns)
    return sum(LETTER * part.max() + SYMBOL for part in parts if len(part))


def plain_ticks(axis: Axis) -> None:
    """Of a log axis: 1, 10, 100 ... 1e+06, with 2 and 5 between them where there is room."""
    lowest, highest = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 50 * lowest else (1,), numticks=MOST_TICKS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def save_figure(figure: Figure, path: Path) -> None:
    """Write `path` with the suffixes .png and .pdf, each beside its target and renamed."""
    for suffix, options in ((".png", {"dpi": 200}), (".pdf", {"metadata": {"CreationDate": None}})):
        temporary = path.with_name(f"{path.name}.tmp")
        with rc_context({"pdf.fonttype": 42}):  # letters as text, which can be searched
            figure.savefig(temporary, format=suffix[1:], **options)
        temporary.replace(path.with_name(path.name + suffix))
