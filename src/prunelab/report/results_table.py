"""What the tables of many runs hold: means and marks, where layers collapse, what was expected, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from typing import Any

from prunelab.report.groups import Group
from prunelab.report.markup import Cell, Lines, Mark
from prunelab.report.plots import layer_name
from prunelab.report.repeats import Spread
from prunelab.report.tidy import LIST_SEPARATOR, SEED, Row, axis_value

MEASURES = {"test_accuracy": "test accuracy (%)", "test_accuracy_best": "at chosen epoch (%)"}
SUMMARISED = (*MEASURES, "val_accuracy", "density", "effective_density", "dead_layers", "macs_masked")

COLUMNS_SAY = (
    "Mean ± standard deviation over n seeds, sqrt(sum (x - mean)² / (n - 1)). Test accuracy is that of the last epoch, "
    "and that of the epoch chosen by validation accuracy. Effective density, dead layers (that keep nothing): means."
)
MARKS_SAY = (
    "{best}: the highest mean of its setting and density; {near}: lower by at most that one's standard deviation."
)

COLLAPSE_SAYS = (
    "Compression ratios: up to the first no run is missing, and every layer of every network keeps something; at the "
    "second a layer of one of them keeps nothing, or no path leads through it. Without any path a run is refused, and "
    "missing, unless pruning.on_collapse is train."
)


@dataclass(frozen=True)
class Expected:
    """A fraction that was expected of some runs, beside what they gave (None: nothing yet)."""

    runs: str
    measure: str
    expected: float
    source: str
    measured: Spread | None

    @property
    def difference(self) -> float | None:
        """measured - expected"""
        return None if self.measured is None else self.measured.mean - self.expected


def marks(found: Sequence[Group], measure: str) -> dict[int, Mark]:
    """Index of a group -> its mark, by the rule MARKS_SAY; none where there is nothing to compare with."""
    marked: dict[int, Mark] = {}
    alike: dict[tuple[str, float], dict[int, Spread]] = {}
    for index, group in enumerate(found):
        if spread := group.spread(measure):
            alike.setdefault((group.setting, group.budget), {})[index] = spread
    for spreads in alike.values():
        best = max(spreads.values(), key=lambda spread: (spread.mean, spread.std or 0))
        for index, spread in spreads.items():
            if len(spreads) > 1 and spread.mean >= best.mean - (best.std or 0):
                marked[index] = "best" if spread.mean == best.mean else "near"
    return marked


def expectations(found: Sequence[Group], expected: Sequence[Mapping[str, Any]]) -> list[Expected]:
    """Set `expected` beside what was measured.

    An entry holds values of some axes, one or both of MEASURES as fractions, and its source. It speaks of all groups
    that have these values; of their last level and all of their seeds, unless it says `level` or `seed_everything`.
    Raises: ValueError for an entry without one of MEASURES.
    """
    results = []
    for entry in expected:
        given = {measure: float(entry[measure]) for measure in MEASURES if entry.get(measure) is not None}
        if not given:
            raise ValueError(f"expected: {dict(entry)} gives no {' or '.join(MEASURES)}")
        wanted = {key: axis_value(value) for key, value in entry.items() if key not in (*MEASURES, "source")}
        text = ", ".join(f"{key} {value}" for key, value in wanted.items())
        level, seed = wanted.pop("level", None), wanted.pop(SEED, None)
        meant = [group for group in found if all(group.values.get(key) == value for key, value in wanted.items())]
        last = {str(group.values): group.level for group in meant}  # levels stand in their order
        meant = [group for group in meant if group.level == (last[str(group.values)] if level is None else level)]
        for measure, value in given.items():
            source = str(entry.get("source") or "not given")
            results += [
                Expected(_runs(group, seed), measure, value, source, group.spread(measure, seed)) for group in meant
            ] or [Expected(text, measure, value, source, None)]
    return results


def results_lines(found: Sequence[Group]) -> Lines:
    """One line for each group: settings below each other, the densest first, then in the order of the groups.

    The dense levels of tickets that differ only in what is kept later are equal, and one line.
    """
    settings = list(dict.fromkeys(group.setting for group in found))
    order = sorted(range(len(found)), key=lambda i: (settings.index(found[i].setting), -found[i].budget))
    marked = {measure: marks(found, measure) for measure in MEASURES}
    several = {"setting": settings != [""], "level": len({group.level for group in found if group.rows}) > 1}
    lines = []
    for i in order:
        group = found[i]
        cells: dict[str, Cell] = {
            "setting": (group.setting, ""),
            "criterion": (_method(group, found), ""),
            "level": (_text(group.level, "d"), ""),
            "density": (_text(group.density_kept, ".4g"), ""),
            "compression": (_text(group.compression, ".4g"), ""),
            "effective density": (_mean(group.spread("effective_density")), ""),
            "dead layers": (_mean(group.spread("dead_layers")), ""),
            "n": (_n(group), ""),
            **{title: (_percent(group, measure), marked[measure].get(i, "")) for measure, title in MEASURES.items()},
        }
        line = {name: cell for name, cell in cells.items() if several.get(name, True)}
        if not (group.is_dense and line in lines):
            lines.append(line)
    header: list[Cell] = [(name, "") for name in (lines[0] if lines else MEASURES)]
    return [header, *(list(line.values()) for line in lines)]


def curves_lines(found: Sequence[Group], measure: str = "test_accuracy") -> Lines | None:
    """The same accuracies as one line for each density and one column for each method; None if there is but one method,
    or two groups would share a place. A dash: nobody asked for it."""
    marked = marks(found, measure)
    places = {(group.setting, group.budget, group.method): index for index, group in enumerate(found)}
    methods = list(dict.fromkeys(group.method for group in found))
    if len(methods) == 1 or len(places) < len(found):
        return None
    lines: list[list[Cell]] = [[(name, "") for name in ("setting", "compression", *methods)]]
    settings = list(dict.fromkeys(group.setting for group in found))
    shared = {(settings.index(group.setting), -group.budget): group for group in found}
    for (_, budget), group in sorted(shared.items(), key=lambda item: item[0]):
        lines.append([(group.setting, ""), (_text(-1 / budget if budget else None, ".4g"), "")])
        for method in methods:
            index = places.get((group.setting, -budget, method))
            lines[-1].append(("-", "") if index is None else (_seeds(found[index], measure), marked.get(index, "")))
    return [line[1 if settings == [""] else 0 :] for line in lines]


def collapse_lines(found: Sequence[Group]) -> Lines:
    """One line for each method of a setting: where layers collapse, as COLLAPSE_SAYS."""
    curves: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        if not group.is_dense:
            curves.setdefault((group.setting, group.method), []).append(group)
    lines = []
    for names, curve in curves.items():
        curve.sort(key=lambda group: group.compression or inf)
        # what is missing may have been refused, as collapsed: nothing behind it is known to be alive
        alive = list(takewhile(lambda group: not (group.collapsed or group.lacks_runs), curve))
        first = [group for group in curve if group.collapsed][:1]
        layers = dict.fromkeys(layer_name(name) for group in first for row in group.rows for name in _collapsed(row))
        missing = [group.compression for group in curve if group.lacks_runs and group.compression]
        cells = [
            ", ".join(filter(None, names)),
            _text(alive[-1].compression if alive else None, ".4g"),
            _text(first[0].compression if first else None, ".4g"),
            _some(list(layers)),
            _some([f"{compression:.4g}" for compression in missing]),
        ]
        lines.append(cells)
    return _unmarked([["criterion", "alive to", "dead at", "dead layers there", "missing at"], *lines])


def expected_lines(compared: Sequence[Expected]) -> Lines:
    """What was expected, in %, beside what was measured; the difference in points."""
    header = ["runs", "of", "expected (%)", "measured (%)", "difference", "n", "source"]
    lines = [
        [
            one.runs,
            MEASURES[one.measure].removesuffix(" (%)"),
            f"{100 * one.expected:.2f}",
            _spread_text(one.measured),
            "-" if one.difference is None else f"{100 * one.difference:+.2f}",
            str(one.measured.n if one.measured else 0),
            one.source,
        ]
        for one in compared
    ]
    return _unmarked([header, *lines])


def summary_rows(found: Sequence[Group]) -> list[Row]:
    """The groups as tidy rows: values of the axes, level, of, and of each of SUMMARISED its mean, std and n."""
    rows = []
    for group in found:
        row = {**group.values, "level": group.level, "of": group.of}
        for name in SUMMARISED:
            spread = group.spread(name)
            row |= {f"{name}.mean": spread and spread.mean, f"{name}.std": spread and spread.std}
            row[f"{name}.n"] = spread.n if spread else 0
        rows.append(row)
    return rows


def _unmarked(lines: Sequence[Sequence[str]]) -> Lines:
    return [[(cell, "") for cell in line] for line in lines]


def _runs(group: Group, seed: Any) -> str:
    level = f"level {group.level}" if group.level else None
    density = None if group.density is None else f"density {group.density:.4g}"
    of_seed = None if seed is None else f"seed {seed}"
    return ", ".join(filter(None, (group.setting, group.method, density, level, of_seed)))


def _percent(group: Group, measure: str) -> str:
    if not group.rows:
        return "missing"
    spread = group.spread(measure)
    if spread is None:
        return "not measured"
    return _spread_text(spread) + (f" (n = {spread.n})" if spread.n != len(group.rows) else "")


def _seeds(group: Group, measure: str) -> str:
    """With how many there are, if some are missing."""
    return _percent(group, measure) + (f" ({_n(group)})" if group.rows and group.lacks_runs else "")


def _spread_text(spread: Spread | None) -> str:
    if spread is None:
        return "missing"
    return f"{100 * spread.mean:.2f}" + ("" if spread.std is None else f" ± {100 * spread.std:.2f}")


def _n(group: Group) -> str:
    return f"{len(group.rows)} of {group.of}" if group.lacks_runs else str(group.of)


def _mean(spread: Spread | None) -> str:
    return _text(spread.mean if spread else None, ".4g")


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _collapsed(row: Row) -> list[str]:
    return row["collapsed_layers"].split(LIST_SEPARATOR) if row["dead_layers"] else []


def _some(texts: Sequence[str], at_most: int = 3) -> str:
    more = [f"{len(texts) - at_most} more"] if len(texts) > at_most else []
    return ", ".join([*texts[:at_most], *more]) or "-"


def _method(group: Group, found: Sequence[Group]) -> str:
    """The line of the dense network has no criterion, but if there are several, their names."""
    if not group.is_dense:
        return group.method
    others = [
        other for other in found if other.is_dense and other.setting == group.setting and other.level == group.level
    ]
    return "dense" if len(others) == 1 else f"dense ({group.method})"
