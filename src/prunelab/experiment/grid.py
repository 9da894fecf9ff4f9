"""A grid of runs: every combination of some values, one run after the other, and one table of what they have in common.

Each cell is an ordinary run, in the directory that it would have alone, so that cells which were run before, in
whatever grid or by themselves, are not run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunelab.experiment.errors import RunError
from prunelab.experiment.job import Config, Instantiate, is_first_process, say
from prunelab.experiment.run import finished_records, make_job, run
from prunelab.experiment.run_dir import RunDir
from prunelab.report.repeats import repeats_table
from prunelab.training.interruption import exit_code_on_signals

REPEATED = "seed_everything"  # the axis that makes repeats: its runs share a row of the table

LEGEND = "test_accuracy is that of the last epoch, test_accuracy_best that of the epoch chosen on validation data."


@dataclass(frozen=True)
class Cell:
    """One run. title: announces it. values: what the axes of the grid are here. config, instantiate: those of `run`."""

    title: str
    values: Mapping[str, Any]
    config: Config
    instantiate: Instantiate


def run_grid(name: str, cells: Sequence[Cell], output_dir: str) -> int:
    """Run `cells` in their order, apart from those that are finished, and print `grid_table`; returns the exit code.

    name, output_dir: as for `run`. Whatever a cell raises ends the grid, with the cell's title as its note.
    Raises: RunError if two cells are the same run; what `run` raises.
    """
    _check_different(name, cells, output_dir)
    records: list[list[dict[str, Any]]] = []
    with exit_code_on_signals():
        for cell in cells:
            try:
                records.append(_run_cell(name, cell, output_dir))
            except Exception as error:
                error.add_note(cell.title)
                raise
    if is_first_process():
        rows = [{**cell.values, **record} for cell, of_cell in zip(cells, records, strict=True) for record in of_cell]
        say(f"\n{grid_table(rows, cells[0].values)}\n\n{LEGEND}\n{len(cells)} runs in {output_dir}")
    return 0


def grid_table(rows: Sequence[Mapping[str, Any]], axes: Iterable[str]) -> str:
    """Return a markdown table with one row for all `rows`, levels of runs, that differ in the seed alone.

    rows: records, each with the values of the `axes` of the grid. Columns: the axes but for the seed, level (if there
    is more than one), density, and what `repeats_table` says of the test accuracy after the last epoch and at the epoch
    chosen on validation data, as far as they were measured everywhere.
    """
    keys = [axis for axis in axes if axis != REPEATED]
    if any(row["num_levels"] > 1 for row in rows):
        keys.append("level")
    measured = [
        value for value in ("test_accuracy", "test_accuracy_best") if all(row[value] is not None for row in rows)
    ]
    return repeats_table(rows, [*keys, "density"], *measured)


def _check_different(name: str, cells: Sequence[Cell], output_dir: str) -> None:
    """Raise what can be told of a cell before it runs: RunError if it is the same run as one before it."""
    titles: dict[RunDir, str] = {}
    for cell in cells:
        try:
            run_dir = RunDir.of(output_dir, name, cell.config)
            if run_dir in titles:
                raise RunError(f"the same run as {titles[run_dir]}, in {run_dir.path}: a grid needs different runs")
        except Exception as error:
            error.add_note(cell.title)
            raise
        titles[run_dir] = cell.title


def _run_cell(name: str, cell: Cell, output_dir: str) -> list[dict[str, Any]]:
    """The records of a cell's levels, which are trained as far as they are not finished."""
    job = make_job(name, cell.config, cell.instantiate, output_dir)
    if (records := finished_records(job)) is not None:
        say(f"{cell.title}: finished earlier")
        return records
    say(f"\n{cell.title}", flush=True)
    run(name, cell.config, cell.instantiate, output_dir)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # the first process writes the record, and the next cell may need it
    return finished_records(job) or []
