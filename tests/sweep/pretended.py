"""An engine that only pretends to run what the driver orders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunelab.report.results import FinishedCell
from prunelab.sweep.drive import Driver
from prunelab.sweep.file import read_sweep
from prunelab.sweep.fork_server import Order
from prunelab.sweep.local import End
from prunelab.sweep.plan import PlannedCell, plan

RECORD = {
    "max_epochs": 2,
    "epochs": 2,
    "out_of_time": False,
    "test_accuracy": 0.5,
    "seconds_scoring": 1.0,
    "seconds_training": 2.0,
}


class Pretended:
    """A run that ends as it is told to, or when it is told to leave."""

    def __init__(self, end: End | None, at_end: Callable[[], None]) -> None:
        self.end, self.at_end, self.told = end, at_end, []

    def poll(self) -> End | None:
        if self.end is not None:
            self.at_end()
        return self.end

    def terminate(self) -> None:
        self.told.append("terminate")
        self.end = End(143)

    def kill(self) -> None:
        self.told.append("kill")
        self.end = End(-9)


class Engine:
    """ends: density, as it is spelled on the command line, -> how its run ends, time after time."""

    name = "pretended"

    def __init__(self, ends: dict[str, list[End | None]], slots: int = 2) -> None:
        self.ends, self.slots = ends, slots
        self.cells: list[PlannedCell] = []
        self.orders: list[Order] = []
        self.runs: list[Pretended] = []
        self.most = self.at_once = 0

    def start(self, order: Order) -> Pretended:
        self.orders.append(order)
        name = order.arguments[order.arguments.index("--pruning.density") + 1]
        cell = next(cell for cell in self.cells if str(cell.cell.values["pruning.density"]) == name)
        end = self.ends.get(name, [End(0)]).pop(0)
        self.at_once += 1
        self.most = max(self.most, self.at_once)

        def at_end() -> None:
            self.at_once -= 1
            if run.end == End(0):
                write_record(cell)

        run = Pretended(end, at_end)
        self.runs.append(run)
        return run

    def close(self) -> None:
        self.most = -self.most  # seen to be closed

    @property
    def densities(self) -> list[str]:
        return [order.arguments[order.arguments.index("--pruning.density") + 1] for order in self.orders]


class Written:
    def __init__(self) -> None:
        self.calls: list[tuple[Sequence[FinishedCell], Sequence[str], bool]] = []

    def __call__(
        self, folder: Path, title: str, cells: Any, axes: Any, expected: Any = (), *, plots: bool = True
    ) -> str:
        self.calls.append((cells, axes, plots))
        return f"the table of {title}"


def write_record(cell: PlannedCell) -> None:
    level = cell.run_dir.level(0)
    level.path.mkdir(parents=True, exist_ok=True)
    level.record.write_text(json.dumps(RECORD))


def run(engine: Engine, grid: str = "{pruning.density: [0.5, 0.2, 0.1]}", set_: str = "{}") -> int:
    Path("many.yaml").write_text(f"# Its claim\nbase: tiny.yaml\nset: {set_}\ngrid: {grid}\n")
    sweep = read_sweep(Path("many.yaml"))
    engine.cells = plan(sweep, "runs")
    return Driver(sweep, engine.cells, Path("runs/sweeps/many"), 1, "runs").run(lambda most: engine)


def states() -> list[tuple[str, str]]:
    return [(cell["state"], cell["detail"]) for cell in json.loads(Path("runs/sweeps/many/states.json").read_text())]
