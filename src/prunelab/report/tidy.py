"""The records of many runs as tidy rows: one row a level of a run, and one a layer of a level."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SEED = "seed_everything"  # the axis that makes repeats: its runs are averaged
LIST_SEPARATOR = " + "  # between the items of a list in one cell
RESULTS, LAYERS = "results.csv", "layers.csv"


@dataclass(frozen=True)
class FinishedCell:
    """A run among many.

    values: axis -> value, that of SEED among them. records: of its finished levels, in their order. missing: why the
    others are. Give the runs that have none too, or nobody sees that they are absent.
    """

    run_dir: str
    values: Mapping[str, Any]
    records: list[dict[str, Any]]
    missing: str = "not finished"

    @property
    def is_finished(self) -> bool:
        """Whether all levels are."""
        return bool(self.records) and self.records[-1].get("level", 0) + 1 >= self.records[-1].get("num_levels", 1)


@dataclass(frozen=True)
class Results:
    """axes: what the runs differ in. rows: the columns `axes`, run_dir, missing, and every scalar of the record; its
    mappings are columns `versions.torch`, its lists texts, dead_layers is the number of collapsed ones. missing: why
    levels of a run are, in one row more that has no record. layers: `axes`, run_dir, level, layer, density of the
    layer. What does not apply is None."""

    axes: tuple[str, ...]
    rows: list[Row] = field(repr=False)
    layers: list[Row] = field(repr=False)

    @classmethod
    def of(cls, cells: Sequence[FinishedCell], axes: Sequence[str]) -> Results:
        """axes: those that the cells have values of; SEED may be left out of them."""
        axes = (*(axis for axis in axes if axis != SEED), SEED)
        rows: list[Row] = []
        layers: list[Row] = []
        for cell in cells:
            values = {axis: axis_value(cell.values.get(axis)) for axis in axes} | {"run_dir": cell.run_dir}
            for place, record in enumerate(cell.records):
                level = record.get("level", place)
                own = {"missing": None, "level": level, "dead_layers": len(record["collapsed_layers"])}
                named = values | own
                scalars = {f"record.{name}" if name in named else name: v for name, v in _scalars(record).items()}
                scalars.pop("record.level", None)
                rows.append(named | scalars)
                densities = record["layer_densities"].items()
                layers += [values | {"level": level, "layer": name, "density": density} for name, density in densities]
            if not cell.is_finished:
                rows.append(values | {"missing": cell.missing})
        columns = dict.fromkeys(column for row in rows for column in row)
        return cls(axes, [dict.fromkeys(columns) | row for row in rows], layers)

    @classmethod
    def read(cls, folder: Path | str) -> Results:
        """Read what `write` wrote. Raises: FileNotFoundError; ValueError for files of another kind."""
        (columns, rows), (_, layers) = (_read_csv(Path(folder) / name) for name in (RESULTS, LAYERS))
        if "run_dir" not in columns:
            raise ValueError(f"{Path(folder) / RESULTS} is no table of runs: it has no column run_dir")
        return cls(tuple(columns[: columns.index("run_dir")]), rows, layers)

    def write(self, folder: Path) -> list[Path]:
        """Write results.csv and layers.csv; returns their paths. The axes are the columns before run_dir."""
        header = [*self.axes, "run_dir", "missing", "level"]
        return [
            write_text(folder / RESULTS, csv_text(self.rows, header)),
            write_text(folder / LAYERS, csv_text(self.layers, [*self.axes, "run_dir", "level", "layer", "density"])),
        ]


def axis_value(value: Any) -> Any:
    """A value of an axis as one cell of a table: a list or a mapping is text, what is empty is None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={axis_value(inner)}" for key, inner in value.items()) or None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return LIST_SEPARATOR.join(str(axis_value(inner)) for inner in value) or None
    return None if value == "" else value


def csv_text(rows: Sequence[Row], columns: Iterable[str] = ()) -> str:
    """The rows as CSV: `columns`, then those of the rows; None is empty, true and false and numbers as in JSON."""
    names = list(dict.fromkeys([*columns, *(column for row in rows for column in row)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([cell_text(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def cell_text(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)


def write_parquet(folder: Path, results: Results) -> bool:
    """Write results.parquet and layers.parquet beside the CSV files, if pyarrow is installed; says whether. Columns of
    several types are text."""
    files = {folder / "results.parquet": results.rows, folder / "layers.parquet": results.layers}
    if importlib.util.find_spec("pyarrow") is None:
        for path in files:
            path.unlink(missing_ok=True)  # one of before would not agree with the CSV
        return False
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    for path, rows in files.items():
        columns = {name: _one_type([row[name] for row in rows]) for name in (rows[0] if rows else ())}
        temporary = path.with_name(f"{path.name}.tmp")
        parquet.write_table(arrow.table(columns), temporary)
        temporary.replace(path)
    return True


def write_text(path: Path, text: str) -> Path:
    """Write beside the target and rename: whoever looks in between sees the file of before."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    return temporary.replace(path)


def _one_type(column: list[Any]) -> list[Any]:
    types = {type(value) for value in column if value is not None}
    if len(types) < 2 or types == {int, float}:
        return column
    return [None if value is None else cell_text(value) for value in column]


def _scalars(record: Mapping[str, Any]) -> Row:
    scalars: Row = {}
    for name, value in record.items():
        if name == "layer_densities":
            continue
        if isinstance(value, Mapping):
            scalars |= {f"{name}.{inner}": axis_value(what) for inner, what in value.items()}
        else:
            scalars[name] = axis_value(value)
    return scalars


def _read_csv(path: Path) -> tuple[list[str], list[Row]]:
    """The header and the rows. A column is numbers (or true and false) if all of its cells are, else text."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    columns = [_typed(column) for column in zip(*lines, strict=True)] if lines else []
    return header, [dict(zip(header, values, strict=True)) for values in zip(*columns, strict=True)]


def _typed(column: Sequence[str]) -> list[Any]:
    try:
        values = [json.loads(cell) if cell else None for cell in column]
    except json.JSONDecodeError:
        values = []
    if len(values) == len(column) and all(value is None or isinstance(value, bool | int | float) for value in values):
        return values
    return [cell or None for cell in column]
