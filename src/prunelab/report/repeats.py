"""Repeated runs, such as seeds: what they have in common, and how far they spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Of n values; std: the standard deviation sqrt(sum (x - mean)^2 / (n - 1)), None for n = 1."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of those that were measured; None if there is none."""
        measured = [value for value in values if value is not None]
        if not measured:
            return None
        return cls(fmean(measured), stdev(measured) if len(measured) > 1 else None, len(measured))


def repeats_table(rows: Iterable[Mapping[str, Any]], group_by: Sequence[str], *values: str) -> str:
    """Return a markdown table with one row for all `rows` that agree in the keys `group_by`.

    Its columns: the keys, n = how many rows there are, and of each of `values`, fractions that are shown in %, mean and
    std, the standard deviation sqrt(sum (x - mean)^2 / (n - 1)), "-" for n = 1; minimum and maximum too if there is but
    one. Groups stand in the order in which they first occur. Rows are records, or whatever has these keys.

    Raises: KeyError for a row without one of the keys; ValueError for a row in which one of `values` was not measured.
    """
    groups: dict[tuple[Any, ...], list[list[float]]] = {}
    for row in rows:
        if missing := [value for value in values if row[value] is None]:
            raise ValueError(f"{missing[0]} was not measured in {dict(row)}")
        groups.setdefault(tuple(row[key] for key in group_by), []).append([100 * row[value] for value in values])
    header = [*group_by, "n"]
    for value in values:
        header += [f"mean {value} (%)", "std"]
    if len(values) == 1:
        header += ["min", "max"]
    return aligned_table([header, *([*map(_text, keys), *_spread(percent)] for keys, percent in groups.items())])


def _spread(percent: Sequence[Sequence[float]]) -> list[str]:
    """Cells for n rows of as many values each."""
    cells = [str(len(percent))]
    columns = list(zip(*percent, strict=True))
    for spread in filter(None, map(Spread.of, columns)):
        cells += [f"{spread.mean:.2f}", "-" if spread.std is None else f"{spread.std:.2f}"]
    if len(columns) == 1:
        cells += [f"{min(columns[0]):.2f}", f"{max(columns[0]):.2f}"]
    return cells


def aligned_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a markdown table, its first line the header, with columns of one width."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [padded[0], ["-" * w for w in widths], *padded[1:]])


def _text(key: Any) -> str:
    if key is None:
        return "-"
    return f"{key:.6g}" if isinstance(key, float) else str(key)
