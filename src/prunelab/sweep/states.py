"""What each cell of a sweep is doing, read from its run directory and its log."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunelab.experiment.run_dir import RunDir, has_levels, write_atomically
from prunelab.report.metrics_csv import read_metrics
from prunelab.report.results import FinishedCell
from prunelab.sweep.local import Running
from prunelab.sweep.plan import PlannedCell

QUEUED, RUNNING, DONE, FAILED = STATES = ("queued", "running", "done", "failed")
_ERROR = re.compile(r"(train\.py: error: .*|[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)")
_TAIL = 1 << 16  # bytes of a log that hold its last error


@dataclass(eq=False)
class CellState:
    """reason: why it failed, or was begun again. deaths: of its process, which no error of its own has ended.
    holder: the process in its directory that it waits for. resumed: whether there was something to go on from.
    began, not_before: by the monotonic clock."""

    planned: PlannedCell
    log: Path
    state: str = QUEUED
    records: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    deaths: int = 0
    holder: str = ""
    resumed: bool = False
    running: Running | None = None
    began: float = 0.0
    not_before: float = 0.0

    @property
    def title(self) -> str:
        return self.planned.title

    def detail(self) -> str:
        """What there is to say of it in its state."""
        if self.state == DONE:
            accuracy = self.records[-1]["test_accuracy"]
            return "no test" if accuracy is None else f"test accuracy {100 * accuracy:.1f} %"
        if self.state == FAILED:
            return f"{self.reason}, see {self.log}"
        if self.state == RUNNING:
            return ", ".join(filter(None, (progress(self.planned), self.reason)))
        return f"waits for {self.holder}" if self.holder else self.reason

    def finished(self) -> FinishedCell:
        missing = f"failed: {self.reason}" if self.state == FAILED else "not finished"
        return FinishedCell(str(self.planned.run_dir.path), self.planned.cell.values, self.records, missing)


def progress(planned: PlannedCell) -> str:
    """How far a run is: level, epoch and the accuracy after it."""
    levels = planned.run_dir.levels()
    if not levels:
        return "begins"
    level = f"level {levels[-1].index}, " if has_levels(planned.config) else ""
    rows = read_metrics(levels[-1].metrics)
    if not rows:
        return f"{level}no epoch yet"
    last, asked = rows[-1], planned.max_epochs
    found = next((kind for kind in ("val", "train") if last.get(f"{kind}_accuracy")), None)
    accuracy = f", {kind_in_words(found)} {100 * float(last[f'{found}_accuracy']):.1f} %" if found else ""
    return f"{level}epoch {last['epoch']}{'' if asked is None else f'/{asked}'}{accuracy}"


def kind_in_words(kind: str) -> str:
    return {"val": "validation accuracy", "train": "training accuracy"}[kind]


def begun(run_dir: RunDir) -> bool:
    """Whether there is something to go on from."""
    return any(level.last_checkpoint.exists() for level in run_dir.levels())


def reason_in(log: Path) -> str:
    """The last error that a log tells of, or else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        return f"no log: {error.strerror}"
    last_run = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("$ ")), -1)
    lines = lines[last_run + 1 :]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["it printed nothing"])[-1].strip()


def counts(states: Iterable[CellState]) -> str:
    """ "3 done, 1 failed, 12 queued", of those states that occur."""
    number = Counter(state.state for state in states)
    return ", ".join(f"{number[state]} {state}" for state in (DONE, FAILED, RUNNING, QUEUED) if number[state])


def write_states(path: Path, states: Sequence[CellState], commands: Sequence[str]) -> None:
    """states.json, for a look from outside. What counts are the run directories."""
    cells = [
        {
            "cell": state.title,
            "state": state.state,
            "detail": state.detail(),
            "run_dir": str(state.planned.run_dir.path),
            "log": str(state.log),
            "command": command,
        }
        for state, command in zip(states, commands, strict=True)
    ]
    write_atomically(path, json.dumps(cells, indent=1) + "\n")
