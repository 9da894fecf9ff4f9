"""Tiny sweeps on the digits, and commands that run them in processes of their own."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from prunelab.sweep.file import read_sweep

from ..forks import Forks, forks
from .pretended import Written

if TYPE_CHECKING:
    from .slow_sweeps import Sweeping

CONFIG = """\
model:
  net: {name: mlp, depth: 2, width: 8, image_size: 8}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
data: {name: digits, device: cpu}
pruning: {criterion: magnitude, density: 0.5}
trainer: {max_epochs: 2, limit_train_batches: 4, accelerator: cpu, enable_progress_bar: false}
"""
# SLOW: seconds that each forward pass waits, so that a signal comes where it is meant to
NET = """\
import os, time
from torch import nn

class SlowNet(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 10))

    def forward(self, pictures):
        time.sleep(float(os.environ.get("SLOW", "0")))
        return super().forward(pictures)
"""
Value = TypeVar("Value")
PATIENCE = 200.0  # seconds, on a machine that is busy
MARK = "SWEEP_TEST_MARK"

IMPORTS = """
import prunelab.sweep.drive, prunelab.sweep.plan, prunelab.sweep.plan_text
import prunelab.pruning.criteria, matplotlib.figure
import prunelab.cli
from prunelab.sweep.__main__ import main
"""
THEN = """
sys.path.append(os.getcwd())  # as python -m does
code = 1
try:
    is_run = request["arguments"][0] == "train.py"
    code = prunelab.cli.main(request["arguments"][1:]) if is_run else main(request["arguments"])
except BaseException:
    sys.excepthook(*sys.exc_info())
finally:
    sys.stdout.flush()
    os._exit(code)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with tiny.yaml, which is where the test is."""
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Command:
    """A sweep, or a run of train.py, in a process of its own; all that it starts carries a mark."""

    def __init__(self, server: Forks, arguments: list[str], directory: Path, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        self.printed = directory / f"{self.mark}.txt"
        self._server = server
        own = {MARK: self.mark, "SLOW": "0.1", **environment}
        with self.printed.open("wb") as output:
            self.pid = server.start(output.fileno(), directory, own, arguments=arguments)
        self._code: int | None = None

    @property
    def text(self) -> str:
        return self.printed.read_text()

    def until(self, condition: Callable[[], Value]) -> Value:
        """Wait until something is true that the sweep brings about; what it then is."""
        end = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < end, f"{self.text}\n{self.processes()}"
            time.sleep(0.02)
        return value

    def send(self, number: signal.Signals) -> None:
        if self._code is None:
            os.kill(self.pid, number)

    def end(self) -> int:
        """Its exit code, once it has ended; below 0 the signal that killed it."""
        if self._code is None:
            self._code = self._server.end(self.pid)
        return self._code

    def processes(self) -> dict[int, tuple[int, str]]:
        """All that carry the mark: id -> parent, command line. The sweep itself is none of them."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (place / "environ").read_bytes():
                    parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
                    found[int(place.name)] = int(parent), (place / "cmdline").read_text().replace("\0", " ")
            except (OSError, IndexError):
                continue
        return found

    def runs(self) -> list[tuple[int, int, int]]:
        """Those that have begun in fork servers: ids of who started the server, of the server, of the run.

        A run that starts a program has its own command line twice for a moment: that is no run of a server.
        """
        servers = {process: parent for process, (parent, words) in self.processes().items() if "fork_server" in words}
        forks = [(servers[parent], parent, process) for process, parent in servers.items() if parent in servers]
        return [(starter, server, run) for starter, server, run in forks if starter not in servers]


@pytest.fixture(scope="session")
def server() -> Iterator[Forks]:
    with forks(IMPORTS, THEN) as server:
        yield server


@pytest.fixture(scope="session")
def start(server: Forks) -> Iterator[Callable[..., Command]]:
    """start(arguments, directory, **environment) -> the Command; what the tests leave running is killed."""
    commands: list[Command] = []

    def begin(arguments: list[str], directory: Path, **environment: str) -> Command:
        commands.append(Command(server, arguments, directory, **environment))
        return commands[-1]

    yield begin
    for command in commands:
        command.send(signal.SIGKILL)
        command.end()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """What the driver has had written as results, which is not written, and no waiting after a death."""
    found = Written()
    monkeypatch.setattr("prunelab.sweep.drive.write_results", found)
    monkeypatch.setattr("prunelab.sweep.drive.SECONDS_BEFORE_AGAIN", 0.0)
    return found


@pytest.fixture(scope="session")
def sweeping(start: Callable[..., Command], tmp_path_factory: pytest.TempPathFactory) -> Sweeping:
    """Sweeps of slow runs; the first run of the output_dir "whole" has been made by hand."""
    from .slow_sweeps import Sweeping, write_sweeps

    directory = tmp_path_factory.mktemp("sweeps")
    write_sweeps(directory)
    first, *_ = read_sweep(directory / "three.yaml").cells
    by_hand = start(["train.py", *first.words, "--output_dir", "whole"], directory, SLOW="0")
    assert by_hand.end() == 0, by_hand.text
    return Sweeping(start, directory)


@pytest.fixture(scope="session")
def whole(sweeping: Sweeping) -> Command:
    """A sweep without Ray that nobody disturbed, in the output_dir of the same name."""
    by_hand = {path: path.stat().st_mtime_ns for path in (sweeping.directory / "whole").rglob("*.*")}
    command = sweeping("whole", "three.yaml", "--engine", "local", "--slots", "2", SLOW="0")
    command.end()
    assert {path: path.stat().st_mtime_ns for path in by_hand} == by_hand
    return command
