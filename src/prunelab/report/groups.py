"""Runs that differ in the seed alone, as one line of a table or one point of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from prunelab.report.repeats import Spread
from prunelab.report.tidy import SEED, Results, Row

# axes that say how much is kept: their places are the density's column and the abscissa
BUDGETS: dict[str, Callable[[float], float]] = {
    "pruning.density": lambda value: value,
    "pruning.sparsity": lambda value: 1 - value,
    "pruning.compression_ratio": lambda value: 1 / value,
    "compression_exponent": lambda value: 10.0**-value,
}
CRITERION = "pruning.criterion"
NAMES = (CRITERION, "criterion", "method")  # axes whose values name methods
_OF_METHODS = ("pruning.", "tickets.", "control")  # axes that begin so tell methods apart too


@dataclass(frozen=True)
class Group:
    """The runs that differ in the seed alone, at one of their levels.

    setting: what is trained (network, data, learning rate ...), method: how it is pruned, its criterion first. values:
    of the axes but the seed. level: None if no run has finished. density: that was asked for, None if nobody knows.
    rows: of the runs that have finished the level, `of` which there should be so many.
    """

    setting: str
    method: str
    values: Row
    level: int | None
    density: float | None
    of: int
    rows: list[Row] = field(repr=False)

    def spread(self, name: str, seed: Any = None) -> Spread | None:
        """Of a column of the rows, or of those of one seed."""
        return Spread.of(row.get(name) for row in self.rows if seed is None or row[SEED] == seed)

    @property
    def budget(self) -> float:
        """The density that was asked for, so rounded that 10 ** -1 is .1; 0 if nobody knows. Groups with one setting
        and budget are compared."""
        return float(f"{self.density or 0:.5g}")

    @property
    def density_kept(self) -> float | None:
        """The mean of what is kept, or else what was asked for."""
        spread = self.spread("density")
        return spread.mean if spread else self.density

    @property
    def compression(self) -> float | None:
        return 1 / self.density_kept if self.density_kept else None

    @property
    def effective_compression(self) -> float | None:
        """1 / mean effective density; inf if no network has a path left, None if it is not known."""
        spread = self.spread("effective_density")
        if spread is None:
            return None
        return 1 / spread.mean if spread.mean else inf

    @property
    def is_dense(self) -> bool:
        return self.density == 1

    @property
    def is_baseline(self) -> bool:
        """Whether these are dense networks of their own, and not the first level of tickets: no method's, but all's."""
        return self.is_dense and all(row.get("num_levels") in (None, 1) for row in self.rows)

    @property
    def lacks_runs(self) -> bool:
        """Whether some or all of the runs have no result: refused, failed, or not finished."""
        return len(self.rows) < self.of

    @property
    def collapsed(self) -> bool:
        """Whether a layer of one of the networks keeps nothing, or no path through one is left."""
        return any(row["dead_layers"] or row["effective_density"] == 0 for row in self.rows)


def groups(results: Results) -> list[Group]:
    """The groups, in the order in which they first occur; several of one run if it has several levels.

    Raises: ValueError if two runs of one seed differ in no axis: they are no repeats.
    """
    methods = [axis for axis in results.axes if _tells_methods(axis, results)]
    settings = [axis for axis in results.axes if axis not in (SEED, *BUDGETS, *methods)]
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in results.rows:
        alike.setdefault(tuple(str(row[axis]) for axis in results.axes if axis != SEED), []).append(row)
    found = []
    for rows in alike.values():
        first, num_runs = rows[0], len({row["run_dir"] for row in rows})
        measured = [row for row in rows if row["missing"] is None]
        for level in sorted({row["level"] for row in measured}) or [None]:
            of_level = [row for row in measured if row["level"] == level]
            _check_repeats(of_level, results.axes)
            found.append(
                Group(
                    setting=", ".join(filter(None, (_label(axis, first[axis]) for axis in settings))),
                    method=_method(of_level[0] if of_level else first, methods),
                    values={axis: first[axis] for axis in results.axes if axis != SEED},
                    level=level,
                    density=of_level[0]["density_requested"] if of_level else _density(first, results.axes),
                    of=num_runs,
                    rows=of_level,
                )
            )
    return found


def _check_repeats(rows: Sequence[Row], axes: Sequence[str]) -> None:
    runs: dict[Any, str] = {}
    for row in rows:
        if row[SEED] is not None and (other := runs.setdefault(row[SEED], row["run_dir"])) != row["run_dir"]:
            differ = ", ".join(axis for axis in axes if axis != SEED) or "anything else"
            raise ValueError(f"{other} and {row['run_dir']} have seed {row[SEED]} and do not differ in {differ}")


def _tells_methods(axis: str, results: Results) -> bool:
    """Whether an axis says how networks are pruned; otherwise it says what is trained. Where no axis names criteria,
    one does, such as `config`, of whose values each goes with one criterion, and not all with the same."""
    if axis in BUDGETS or axis == SEED:
        return False
    if axis in NAMES or axis.startswith(_OF_METHODS):
        return True
    criteria: dict[Any, set[str]] = {}
    for row in results.rows:
        if row["missing"] is None:
            criteria.setdefault(row[axis], set()).add(row["criterion"])
    one_each = all(len(names) == 1 for names in criteria.values())
    return one_each and len(set().union(*criteria.values())) > 1 and not set(NAMES) & set(results.axes)


def _method(row: Row, axes: Sequence[str]) -> str:
    name = next((axis for axis in NAMES if axis in axes and row[axis] is not None), "criterion")
    others = (_label(axis, row[axis]) for axis in axes if axis != name)
    return ", ".join(filter(None, (str(row.get(name) or "?"), *others)))


def _label(axis: str, value: Any) -> str | None:
    """A value as one reads it: a name stands for itself, a number has its axis before it."""
    if value is None:
        return None
    if isinstance(value, str):
        return value
    number = f"{value:.6g}" if isinstance(value, float) else str(value).lower()
    return f"{axis.rpartition('.')[2]} {number}"


def _density(row: Row, axes: Sequence[str]) -> float | None:
    """That was asked of a run that has no record."""
    given = [BUDGETS[axis](row[axis]) for axis in axes if axis in BUDGETS and isinstance(row[axis], int | float)]
    return given[0] if given else None
