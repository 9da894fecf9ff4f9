"""A real run with levels, ended at any moment and started again until it is done: nothing tells it from a whole one."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from prunelab.experiment.run_dir import LevelDir

from .finished_runs import (
    Finished,
    assert_equal,
    checkpoint,
    left,
    levels_of,
    run_in,
    write_module_and_config,
)

NUM_KILLS = 20  # half of them by the clock, half of them while a file is written
# SLOW: seconds that each forward pass waits, so that a signal comes where it is meant to. DIES_AT: the process kills
# itself just before (0, 2, ...) or just after (1, 3, ...) a file is moved to its place, counted from its start
NET = """\
import os, signal, time
from torch import nn

class NoisyNet(nn.Sequential):
    def __init__(self):
        convolution, norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        head = nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10)
        super().__init__(convolution, norm, nn.ReLU(), *head)

    def forward(self, images):
        time.sleep(float(os.environ["SLOW"]))
        return super().forward(images)

moments_left, move = int(os.environ["DIES_AT"]), os.replace

def replace(*paths):
    pass_moment()
    move(*paths)
    pass_moment()

def pass_moment():
    global moments_left
    if moments_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    moments_left -= 1

os.replace = replace
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given."""
    missing = {"tickets": "levels: 2, supermask: true", "trainer": "devices: 1"}
    return write_module_and_config(tmp_path_factory.mktemp("killed"), NET, **missing)


@pytest.fixture(scope="module")
def whole(directory: Path, launch: Any) -> Finished:
    began = time.monotonic()
    command = launch(["--config", "killed.yaml", "--output_dir", "whole"], directory, SLOW="0", DIES_AT="-1")
    assert command.end() == 0, command.text
    return Finished(run_in(directory / "whole"), time.monotonic() - began, command.text)


@pytest.fixture
def train(directory: Path, start: Any) -> Callable[..., Any]:
    """train("name") starts the run with that output directory. slow, dies_at: see NET."""

    def begin(output_dir: str, *more: str, slow: float = 0.0, dies_at: int = -1) -> Any:
        words = ["--config", "killed.yaml", "--output_dir", output_dir, *more]
        return start(words, directory, SLOW=str(slow), DIES_AT=str(dies_at))

    return begin


def same_result(run: Path, whole: Finished) -> None:
    """Weights, optimizer, schedule, loops, random state, masks, rows, records: bit for bit."""
    assert_equal(left(run), left(whole.path))


def written(*paths: Path) -> dict[Path, int]:
    """When each file at or below `paths` was written."""
    files = (file for path in paths for file in path.rglob("*") if file.is_file())
    return {file: file.stat().st_mtime_ns for file in files}


def test_killed_at_random_moments(directory: Path, train: Any, whole: Finished) -> None:
    moments = random.Random(0)
    num_kills = num_runs = 0
    while num_kills < NUM_KILLS:
        num_runs += 1
        code = -signal.SIGKILL
        while code != 0:
            run = run_in(directory / f"killed_{num_runs}")
            finished = written(*(level.path for level in levels_of(run) if level.record.exists()))
            while_writing = num_kills < NUM_KILLS and moments.random() < 0.5
            command = train(f"killed_{num_runs}", dies_at=moments.randrange(24) if while_writing else -1)
            if num_kills < NUM_KILLS and not while_writing:
                time.sleep(moments.uniform(0.05, 0.3) * whole.seconds)
                command.send(signal.SIGKILL)
            code = command.end()
            assert code in (0, -signal.SIGKILL), command.text
            num_kills += code != 0
            assert finished.items() <= written(run).items()
        same_result(run_in(directory / f"killed_{num_runs}"), whole)


def test_killed_before_a_level_has_saved_anything(directory: Path, train: Any, whole: Finished) -> None:
    """What it starts from is in memory only, and inside an epoch, to whose end it has trained by then."""
    command = train("unsaved")
    command.read_to("level 1  pruning:")
    command.send(signal.SIGKILL)
    command.end()
    command = train("unsaved", dies_at=6)  # ticket.pt, masks.pt and metrics.csv have come, a checkpoint is next
    assert command.end() == -signal.SIGKILL, command.text
    before, level = levels_of(run_in(directory / "unsaved"))
    assert before.record.exists()
    assert level.masks.exists()
    assert len(level.metrics.read_text().splitlines()) == 2
    assert not any(path.exists() for path in (level.last_checkpoint, level.best_checkpoint, level.record))
    command = train("unsaved")
    assert command.end() == 0, command.text
    assert "level 1: rewound to step 30" in command.text
    assert "resuming from" not in command.text
    same_result(run_in(directory / "unsaved"), whole)


def test_signals_end_it_with_their_own_exit_codes(directory: Path, train: Any, whole: Finished) -> None:
    """In the middle of an epoch after a checkpoint there, while scoring without; another process is kept out."""
    command = train("signals", slow=0.02)
    command.read_to("level 0  epoch 1/3")
    run = run_in(directory / "signals")
    other = train("signals")
    assert other.end() == 2
    assert f"is held by process {command.pid} on " in other.text
    assert other.text.count("\n") == 1
    command.read_to("level 0  epoch 2/3")
    time.sleep(0.2)
    stopped_inside_an_epoch(command, signal.SIGINT, levels_of(run)[0])

    for index, number in ((1, signal.SIGTERM), (2, signal.SIGINT)):
        command = train("signals")
        command.read_to(f"level {index}  pruning:")
        command.send(number)
        assert command.end() == 128 + number, command.text
        assert "resuming from" in command.text or index == 2
        level = levels_of(run)[index]
        assert not any(path.exists() for path in (level.masks, level.last_checkpoint, level.record))

    command = train("signals", slow=0.02)
    command.read_to("level 2  epoch 2/3")
    time.sleep(0.2)
    stopped_inside_an_epoch(command, signal.SIGTERM, levels_of(run)[2])

    command = train("signals")
    assert command.end() == 0, command.text
    assert f"resuming from {levels_of(run)[2].last_checkpoint.relative_to(directory)}, epoch 3" in command.text
    same_result(run, whole)


def stopped_inside_an_epoch(command: Any, number: signal.Signals, level: LevelDir) -> None:
    before = level.last_checkpoint.stat().st_mtime_ns
    command.send(number)
    assert command.end() == 128 + number, command.text
    stopped = re.search(rf"stopped by {number.name} in epoch (\d) after step (\d+), saved ", command.text)
    assert stopped is not None, command.text
    content = checkpoint(level.last_checkpoint)
    assert (content["epoch"] + 1, content["global_step"]) == (int(stopped[1]), int(stopped[2]))
    assert content["global_step"] % 20
    assert level.last_checkpoint.stat().st_mtime_ns > before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])


def test_truncated_checkpoints(directory: Path, train: Any, whole: Finished) -> None:
    """Of the level that was interrupted, and of the finished one that it starts from."""
    command = train("truncated")
    command.read_to("level 1  pruning:")
    command.send(signal.SIGKILL)
    command.end()
    command = train("truncated", slow=0.02)
    command.read_to("level 1  epoch 2/3")
    time.sleep(0.2)
    command.send(signal.SIGTERM)
    assert command.end() == 143, command.text
    run = run_in(directory / "truncated")
    levels = levels_of(run)
    for level in levels:
        cut(level.last_checkpoint)
    command = train("truncated")
    assert command.end() == 0, command.text
    for level in levels:
        damaged = level.last_checkpoint.relative_to(directory)
        assert f"resuming from {damaged.with_name('previous.ckpt')}, epoch 2, step 40 ({damaged} is damaged)" in (
            command.text
        )
        Path(f"{level.last_checkpoint}.damaged").unlink()  # kept out of the way of the next checkpoints
    same_result(run, whole)


def test_a_finished_run_prints_its_table(train: Any, whole: Finished) -> None:
    before = written(whole.path)
    command = train("whole")
    assert command.end() == 0
    first, *table = command.lines
    assert first == "finished earlier, nothing to do\n"
    assert "".join(table) == whole.text[-len("".join(table)) :]
    assert whole.path.name in table[-1]
    assert written(whole.path) == before


def test_fresh_keeps_the_old_directory(directory: Path, train: Any) -> None:
    command = train("fresh")
    command.read_to("level 0  epoch 2/3")
    command.send(signal.SIGKILL)
    command.end()
    run = run_in(directory / "fresh")
    before = {path.relative_to(run): path.read_bytes() for path in written(run)}
    command = train("fresh", "--fresh")
    command.read_to("level 0  epoch 1/3")
    command.send(signal.SIGKILL)
    command.end()
    kept = run.with_name(f"{run.name}.1")
    assert f"what was there is kept as {kept.relative_to(directory)}\n" in command.lines
    assert {path.relative_to(kept): path.read_bytes() for path in written(kept)} == {**before, Path("lock"): ANY}
    assert run_in(directory / "fresh") == run
    assert "resuming from" not in command.text
