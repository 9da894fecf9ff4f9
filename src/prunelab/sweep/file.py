"""A sweep's YAML file -> its cells, each the command line of train.py for the same run. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from prunelab.command_line import in_words
from prunelab.config import Config, read_yaml
from prunelab.names import CommandError, nearest
from prunelab.sweep.axes import OVERLAY, Axis, list_of, mapping, number, read_grids, shown

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"
SEED = "seed_everything"
KEYS = ("base", "set", "grid", "repeats", "seeds", "exclude", "expected")
MEASURES = ("test_accuracy", "test_accuracy_best")  # that may be expected
REMARKS = ("level", "source")
NO_CLAIM = "a sweep"
LONGEST_NAME = 100


@dataclass(frozen=True)
class SweepCell:
    """One run. values: of the axes, and its seed. words: what follows `python train.py`."""

    title: str
    values: Mapping[str, Any]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """name: the file's, with what was typed on top of it. path: of the file. claim: its first line. axes: in the order
    in which the file has them, without the seed."""

    name: str
    path: Path
    claim: str
    axes: tuple[str, ...]
    cells: tuple[SweepCell, ...]
    expected: tuple[Mapping[str, Any], ...]


def find_sweep(name: str) -> Path:
    """The sweep file called `name`: as a path, or in sweeps/, there also without its ending."""
    for path in (Path(name), SWEEPS / name, SWEEPS / f"{name}.yaml"):
        if path.is_file():
            return path
    known = [path.name for path in sorted(SWEEPS.glob("*.yaml"))]
    raise CommandError(f"no sweep {name!r} here or in sweeps/{nearest(Path(name).name, known)}")


def read_sweep(path: Path, options: Sequence[tuple[str, str]] = (), repeats: int | None = None) -> Sweep:
    """The sweep in a file.

    options: dotted keys and values of the command line, which go on top of `set`. repeats: in place of the file's.
    Cells come in the order of the grid, seed by seed, so that every point has a first run before any has a second.
    Raises: CommandError.
    """
    content = read_yaml(path)
    try:
        return _sweep(path, content, options, repeats)
    except CommandError as error:
        raise CommandError(f"{path}: {error}") from None


def _sweep(path: Path, content: Config, options: Sequence[tuple[str, str]], repeats: int | None) -> Sweep:
    for key in content:
        if key not in KEYS:
            raise CommandError(f"unknown key {key}{nearest(str(key), KEYS) or ';'} a sweep has {', '.join(KEYS)}")
    bases = list_of("base", content.get("base"), str)
    if not bases:
        raise CommandError("base: name the config, or configs, that the runs start from")
    given = _given(mapping("set", content.get("set")), options)
    grids = read_grids(content.get("grid"))
    axes = tuple(dict.fromkeys(axis for grid in grids for axis in grid if axis != SEED))
    seeds = _seeds(content, repeats, grids)
    points = [dict(zip(grid, chosen, strict=True)) for grid in grids for chosen in product(*grid.values())]
    if seeds is not None:
        points = [{**point, SEED: (seed, ((SEED, seed),))} for seed in seeds for point in points]
    cells = [_cell(bases, given, point) for point in points]
    cells = _without(cells, _entries("exclude", content.get("exclude")), (*axes, SEED))
    _check_titles(cells, (*axes, SEED))
    expected = _expected(cells, _entries("expected", content.get("expected")), (*axes, SEED))
    typed = [] if repeats in (None, content.get("repeats")) else [("repeats", str(repeats))]
    name = _name(path.stem, [*typed, *options])
    return Sweep(name, path, _claim(path), axes, tuple(cells), expected)


def _name(stem: str, typed: Sequence[tuple[str, str]]) -> str:
    """Of a sweep: what is typed on top of a file makes other runs, whose results are none of the file's."""
    name = "-".join([stem, *(f"{key}={value}" for key, value in typed)])
    if len(name) <= LONGEST_NAME and not re.search(r"[^\w.+=-]", name.removeprefix(stem)):
        return name
    return f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _given(of_file: Mapping[str, Any], typed: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    """What all cells have: what is typed takes the place of what the file sets, or is appended (`key+`), as typed."""
    replaced = {key for key, _ in typed if not key.endswith("+")}
    return [*((key, value) for key, value in of_file.items() if key not in replaced), *typed]


def _check_titles(cells: Sequence[SweepCell], axes: Sequence[str]) -> None:
    """Tables know runs by the values of their axes, so these have to tell all runs apart."""
    known: dict[tuple[str, ...], SweepCell] = {}
    for cell in cells:
        values = tuple(str(cell.values.get(axis)) for axis in axes)
        if sorted((other := known.setdefault(values, cell)).words) != sorted(cell.words):
            different = " ".join(word for word in cell.words if word not in other.words)
            raise CommandError(
                f"grid: two cells are called {cell.title}, one of them has {different}: give values names of your own, "
                "{name: {key: value, ...}}"
            )


def _cell(bases: Sequence[str], given: Sequence[tuple[str, Any]], point: Mapping[str, Axis]) -> SweepCell:
    """The cell at `point`, axis -> its value there."""
    values = {axis: value for axis, (value, _) in point.items()}
    title = ", ".join(f"{axis} {in_words(value)}" for axis, value in values.items())
    options = [option for _, of_axis in point.values() for option in of_axis]
    overlays = [name for key, name in options if key == OVERLAY]
    varied = [key for key, _ in options if key != OVERLAY]
    if twice := [key for key in varied if varied.count(key) > 1]:
        raise CommandError(f"grid: {twice[0]} is given by two axes in {title}")
    if both := [key for key in varied if key in dict(given)]:
        raise CommandError(f"{both[0]} is varied by the grid and cannot be given too")
    words = [word for name in (*bases, *overlays) for word in ("--config", name)]
    typed = [*given, *(option for option in options if option[0] != OVERLAY)]
    words += [word for key, value in typed for word in (f"--{key}", in_words(value))]
    return SweepCell(title, values, tuple(words))


def _seeds(content: Config, repeats: int | None, grids: Sequence[Mapping[str, Any]]) -> Sequence[int] | None:
    """None: the grid's, or else the base's own."""
    ways = [key for key in ("repeats", "seeds") if content.get(key) is not None] if repeats is None else ["--repeats"]
    ways += [f"grid: {SEED}"] if any(SEED in grid for grid in grids) else []
    if len(ways) > 1:
        raise CommandError(f"{' and '.join(ways)} both give seeds: give one of them")
    if ways == ["seeds"]:
        seeds = list_of("seeds", content["seeds"], int)
        if not seeds:
            raise CommandError("seeds: expected whole numbers, such as [0, 1], got none")
        return seeds
    times = content.get("repeats") if repeats is None else repeats
    if times is None:
        return None
    if not isinstance(times, int) or isinstance(times, bool) or times < 1:
        raise CommandError(f"repeats: expected a whole number of at least 1, got {in_words(times)}")
    return range(times)


def _without(cells: list[SweepCell], entries: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> list[SweepCell]:
    """The cells of which no entry says that they are left out."""
    for entry in entries:
        if not entry:
            raise CommandError("exclude: an entry without keys would leave everything out")
        for key in entry:
            if key not in axes:
                raise CommandError(f"exclude: {key} is no axis{nearest(key, axes) or ';'} there are {', '.join(axes)}")
        if not any(_matches(cell, entry) for cell in cells):
            raise CommandError(f"exclude: no cell has {_entry_in_words(entry)}")
    left = [cell for cell in cells if not any(_matches(cell, entry) for entry in entries)]
    if not left:
        raise CommandError("exclude: leaves no cell")
    return left


def _expected(
    cells: Sequence[SweepCell], entries: Sequence[Mapping[str, Any]], axes: Sequence[str]
) -> tuple[Mapping[str, Any], ...]:
    """The entries, seen to belong to cells, with the cells' own values of the axes: 1e-4 may be text in one of them."""
    known = (*axes, *MEASURES, *REMARKS)
    found: list[Mapping[str, Any]] = []
    for entry in entries:
        for key in entry:
            if key not in known:
                hint = nearest(key, known) or ";"
                raise CommandError(f"expected: {key} is no axis{hint} there are {', '.join(known)}")
        chosen = {key: value for key, value in entry.items() if key in axes}
        for key in MEASURES:
            number(f"expected: {key}", entry.get(key, 0))
        if not any(key in entry for key in MEASURES):
            raise CommandError(f"expected: {_entry_in_words(entry)} has no value of {' or '.join(MEASURES)}")
        own = dict.fromkeys(tuple(cell.values[key] for key in chosen) for cell in cells if _matches(cell, chosen))
        if not own:
            raise CommandError(f"expected: no cell has {_entry_in_words(chosen)}")
        found += [{**entry, **dict(zip(chosen, values, strict=True))} for values in own]
    return tuple(found)


def _matches(cell: SweepCell, entry: Mapping[str, Any]) -> bool:
    return all(key in cell.values and _same(cell.values[key], shown(key, value)) for key, value in entry.items())


def _same(one: Any, other: Any) -> bool:
    """As typed: 1 and 1.0, "1e-4" and 1e-4 are the same."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return in_words(one) == in_words(other)


def _entry_in_words(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {in_words(value)}" for key, value in entry.items())


def _entries(key: str, given: Any) -> list[dict[str, Any]]:
    return [mapping(key, entry) for entry in list_of(key, given, dict)]


def _claim(path: Path) -> str:
    found: Iterator[re.Match[str]] = re.finditer(r"^# *(\S.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return next((match[1] for match in found), NO_CLAIM)
