"""What a sweep has to do: its cells, resolved and checked as train.py would, with what is finished of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from prunelab.cli import USER_ERRORS, build_parser, instantiator, plain_values, resolve
from prunelab.command_line import read_command
from prunelab.config import DENSITY_SPELLINGS, Config, section
from prunelab.experiment.job import Job
from prunelab.experiment.records import read_record
from prunelab.experiment.run import finished_records, make_job
from prunelab.experiment.run_dir import RunDir
from prunelab.names import CommandError
from prunelab.sweep.file import SEED, Sweep, SweepCell


@dataclass(frozen=True)
class PlannedCell:
    """A cell, and the run that it is. config: resolved. ticket: the run that a control needs."""

    cell: SweepCell
    name: str
    config: Mapping[str, Any]
    output_dir: str
    run_dir: RunDir
    ticket: RunDir | None

    @property
    def title(self) -> str:
        return self.cell.title

    @cached_property
    def kind(self) -> str:
        """Cells of one kind take about as long: same network, data and training."""
        return json.dumps([self.config[key] for key in ("model", "data", "trainer", "tickets")], sort_keys=True)

    @property
    def max_epochs(self) -> int | None:
        return self.config["trainer"].get("max_epochs")

    def records(self) -> list[dict[str, Any]] | None:
        """Of its levels, if it is finished. Raises: RunError for a directory that cannot be the run's."""
        if self.ticket is not None and finished_records(self._job({**self.config, "control": None})) is None:
            return None  # a control comes after its ticket
        return finished_records(self.job())

    def records_there(self) -> list[dict[str, Any]]:
        """Of the levels that have one: all that a run has to give that ended well, be it by trainer.max_time."""
        found = [read_record(level.record) for level in self.run_dir.levels()]
        return [record for record in found if record is not None]

    def job(self) -> Job:
        return self._job(self.config)

    def _job(self, config: Mapping[str, Any]) -> Job:
        return make_job(self.name, config, _never, self.output_dir)


def plan(sweep: Sweep, output_dir: str) -> list[PlannedCell]:
    """The cells of `sweep`, seen to be runs that differ, and that train.py would begin.

    Raises: CommandError with the title of the cell.
    """
    make = _Resolved()
    planned: list[PlannedCell] = []
    titles: dict[RunDir, str] = {}
    for cell in sweep.cells:
        try:
            name, config = make(arguments(cell, output_dir), output_dir)
            run_dir = RunDir.of(output_dir, name, config)
            ticket = RunDir.of(output_dir, name, {**config, "control": None}) if config.get("control") else None
            if titles.get(run_dir) == cell.title:
                raise CommandError("is listed twice")
            if run_dir in titles:
                raise CommandError(f"is the same run as {titles[run_dir]}, in {run_dir.path}")
        except USER_ERRORS as error:
            raise CommandError(f"{cell.title}: {error}") from None
        titles[run_dir] = cell.title
        seeded = cell if SEED in cell.values else SweepCell(cell.title, {**cell.values, SEED: config[SEED]}, cell.words)
        planned.append(PlannedCell(seeded, name, config, output_dir, run_dir, ticket))
    for one in planned:
        try:
            one.records()
            if one.ticket not in titles:  # otherwise its ticket comes first
                one.job()
        except USER_ERRORS as error:
            raise CommandError(f"{one.title}: {error}") from None
    return planned


def command_of(cell: SweepCell, output_dir: str, threads: int) -> str:
    """What to type for the run of a cell alone."""
    return f"OMP_NUM_THREADS={threads} python train.py {shlex.join(arguments(cell, output_dir))}"


def arguments(cell: SweepCell, output_dir: str) -> list[str]:
    """The command line of the cell's run, without the program's name."""
    return [*cell.words, *(["--output_dir", output_dir] if output_dir != "runs" else [])]


def seconds_by_kind(cells: Sequence[tuple[PlannedCell, float]]) -> dict[str, float]:
    """Mean seconds of finished cells, for each kind of them."""
    found: dict[str, list[float]] = {}
    for cell, seconds in cells:
        found.setdefault(cell.kind, []).append(seconds)
    return {kind: fmean(values) for kind, values in found.items()}


def seconds_of(records: Sequence[Mapping[str, Any]]) -> float:
    """That its levels took to score and train."""
    return sum(record["seconds_scoring"] + record["seconds_training"] for record in records)


def seconds_left(left: Sequence[tuple[PlannedCell, float]], by_kind: Mapping[str, float], slots: int) -> float | None:
    """How long the cells that are left will take, so many at a time; None if a kind of them is not known yet.

    left: with each cell the seconds that it has been running.
    """
    if any(cell.kind not in by_kind for cell, _ in left):
        return None
    return sum(max(0.0, by_kind[cell.kind] - spent) for cell, spent in left) / max(1, min(slots, len(left)))


class _Resolved:
    """words of a train.py command -> name and resolved values, which are those of `cli`.

    To type a config takes 0.1 s. Cells often differ only in seed and density, plain numbers that need no types: what is
    the same but for these is typed, and its objects built to see that they can be, once.
    """

    def __init__(self) -> None:
        self._parser = build_parser()
        self._found: dict[str, Config] = {}

    def __call__(self, words: list[str], output_dir: str) -> tuple[str, Config]:
        command = read_command(words)
        if (other := command.config.get("output_dir", output_dir)) != output_dir:
            raise CommandError(f"output_dir {other}: give it to the sweep, --output_dir")
        if command.grid:
            raise CommandError(f"its config has a grid of its own, {', '.join(command.grid)}: a cell is one run")
        numbers = dict(_numbers(command.config))
        shape = deepcopy(command.config)
        for group, key in numbers:
            (section(shape, group) if group else shape)[key] = "a number"
        known = json.dumps(shape, sort_keys=True, default=str)
        if known not in self._found:
            self._found[known] = self._resolve(command.config)
        config = deepcopy(self._found[known])
        for (group, key), value in numbers.items():
            (section(config, group) if group else config)[key] = value
        return command.name, config

    def _resolve(self, config: Config) -> Config:
        typed = resolve(self._parser, config)
        plain, _, checkpoint = plain_values(self._parser, typed)
        if checkpoint is not None:
            raise CommandError("ckpt_path goes with one run")
        try:
            instantiator(self._parser, typed)()
        except USER_ERRORS:
            raise
        except Exception as error:  # of a class that somebody else wrote; before the first run it is one line
            raise CommandError(f"{type(error).__name__}: {error}") from error
        return plain


def _numbers(config: Config) -> Iterator[tuple[tuple[str, str], int | float]]:
    """The plain numbers that cells differ in, already checked by `read_command`."""
    if SEED in config:
        yield ("", SEED), int(config[SEED])
    for spelling in DENSITY_SPELLINGS:
        if (value := section(config, "pruning").get(spelling)) is not None:
            yield ("pruning", spelling), float(value)


def _never() -> Any:
    raise AssertionError("a plan trains nothing")
