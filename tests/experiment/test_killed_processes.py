"""A real run on two processes (gloo, CPU), of which some or all are ended at any moment: none is left, nothing hangs,
and the same command ends as if nothing had been. Under Lightning's launcher (the first process) and under torchrun."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from .finished_runs import (
    Finished,
    assert_equal,
    checkpoint,
    left,
    levels_of,
    run_in,
    write_module_and_config,
)

NUM_STOPS = 3  # at random moments, of each kind
TRAIN = str(Path(__file__).parents[2] / "train.py")
PATIENCE = 10.0  # seconds until the last process has ended
# SLOW: seconds that each forward pass waits, so that a signal comes where it is meant to. LATE: the process that comes
# a second after the other. BLIND: the second process sees no file of that name, as on a node whose file system lags.
# The first line "passed" after an epoch is in the next one, far from its end
NET = """\
import builtins, errno, os, time
from torch import nn

rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
if os.environ.get("LATE") == str(rank):
    time.sleep(1)
print(f"process {rank} is {os.getpid()}.", flush=True)

def blind(function):
    def look(path, *arguments, **options):
        if not isinstance(path, int) and os.path.basename(path) == os.environ["BLIND"]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return function(path, *arguments, **options)
    return look

if "BLIND" in os.environ and rank == 1:
    os.stat, builtins.open = blind(os.stat), blind(open)

class NoisyNet(nn.Sequential):
    def __init__(self):
        convolution, norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        head = nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10)
        super().__init__(convolution, norm, nn.ReLU(), *head)
        self.num_passed = 0

    def forward(self, images):
        time.sleep(float(os.environ["SLOW"]))
        self.num_passed += self.training
        if self.training and self.num_passed % 4 == 1 and rank == 0:
            print("passed", flush=True)
        return super().forward(images)
"""
AGENT, FIRST, OTHER, ALL = (-1,), (0,), (1,), (0, 1)


class Processes:
    """The processes of one command, by rank; under torchrun, rank -1 is its agent."""

    def __init__(self, command: Any, torchrun: bool) -> None:
        self.command, self.torchrun = command, torchrun

    def read_to(self, sign: str) -> None:
        self.command.read_to(sign)

    @property
    def ids(self) -> dict[int, int]:
        """Of those that have said so: a process of torchrun's does when it begins, the others once it is started."""
        found = re.findall(r"process (\d) is (\d+)\.", self.command.text)
        return {int(rank): int(number) for rank, number in found} | {-1 if self.torchrun else 0: self.command.pid}

    def send(self, number: signal.Signals, ranks: tuple[int, ...]) -> None:
        for rank in ranks:
            send(self.ids[rank], number)

    def end(self) -> int:
        """The exit code, once all of them have ended, which takes them no longer than it may.

        They share the output, whose end is theirs; and it is looked whether they are really gone.
        """
        killer = threading.Timer(
            6 * PATIENCE, self.send, (signal.SIGKILL, tuple(self.ids))
        )  # a test may fail, not hang
        killer.start()
        code = self.command.end()
        killer.cancel()
        until = time.monotonic() + PATIENCE
        while any(map(is_running, self.ids.values())):  # their output is closed a moment before they are gone
            assert time.monotonic() < until, self.text
            time.sleep(0.01)
        return code

    def end_soon(self) -> int:
        began = time.monotonic()
        code = self.end()
        assert time.monotonic() - began < PATIENCE, self.text
        return code

    @property
    def text(self) -> str:
        return self.command.text


def send(process: int, number: signal.Signals) -> None:
    if is_running(process):
        os.kill(process, number)


def is_running(process: int) -> bool:
    """Whether there is such a process, and it is not only waiting for its parent to take note of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given."""
    missing = {"tickets": "levels: 1", "trainer": "devices: 2, strategy: ddp"}
    return write_module_and_config(tmp_path_factory.mktemp("killed_processes"), NET, **missing)


def without_levels(directory: Path) -> None:
    """short.yaml, a run of one level."""
    text = (directory / "killed.yaml").read_text()
    (directory / "short.yaml").write_text(re.sub("tickets:.*", "", text))


@pytest.fixture(scope="module")
def whole(directory: Path, launch: Any) -> Finished:
    began = time.monotonic()
    words = ["--config", "killed.yaml", "--output_dir", "whole"]
    processes = Processes(launch(words, directory, processes=2, SLOW="0"), torchrun=False)
    assert processes.end() == 0, processes.text
    assert processes.ids.keys() == {0, 1}
    return Finished(run_in(directory / "whole"), time.monotonic() - began, processes.text)


@pytest.fixture
def train(directory: Path, start: Any) -> Callable[..., Processes]:
    """train("name") starts the run with that output directory. slow, environment: see NET."""

    def begin(
        output_dir: str, *more: str, slow: float = 0.0, torchrun: bool = False, processes: int = 2, **environment: str
    ) -> Processes:
        words = ["--output_dir", output_dir, *(more or ("--config", "killed.yaml"))]
        command = start(words, directory, processes=processes, torchrun=torchrun, SLOW=str(slow), **environment)
        return Processes(command, torchrun)

    return begin


class RealCommand:
    """What conftest's Command is, without its fork server: as a user gives it, everything imported anew."""

    def __init__(self, words: list[str], directory: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SLOW": "0.01"}
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self._process = subprocess.Popen([sys.executable, *words], cwd=directory, env=environment, **options)
        self.pid = self._process.pid
        self.text = ""

    def read_to(self, sign: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.text += line
            if sign in line:
                return
        raise AssertionError(self.text)

    def end(self) -> int:
        self.text += self._process.communicate()[0]
        return self._process.returncode


@pytest.fixture
def torchrun(directory: Path) -> Iterator[Callable[..., Processes]]:
    """torchrun(words) is a real command; what a test leaves of it is killed."""
    commands: list[Processes] = []

    def begin(*words: str) -> Processes:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        command = RealCommand([*launcher, TRAIN, "--config", "killed.yaml", *words], directory)
        commands.append(Processes(command, torchrun=True))
        return commands[-1]

    yield begin
    for processes in commands:
        processes.send(signal.SIGKILL, tuple(processes.ids))


def same_result(run: Path, whole: Finished) -> None:
    """Weights, optimizer, random state of both processes, masks, rows, records: bit for bit."""
    assert_equal(left(run), left(whole.path))


def test_each_process_draws_for_itself(whole: Finished) -> None:
    """Or the random state of the first would do for both."""
    one, other = checkpoint(levels_of(whole.path)[0].last_checkpoint)["random_state_of_ranks"]
    assert one.keys() == other.keys()
    assert not torch.equal(one["torch"], other["torch"])


def test_killed(directory: Path, train: Any, whole: Finished) -> None:
    """Where they score and where they train."""
    for sign, ranks in (
        ("process 1 is", OTHER),
        ("level 0  epoch 2/3", FIRST),
        ("level 1  pruning:", OTHER),
        ("level 1  epoch 2/3", ALL),
    ):
        processes = train("killed", slow=0.02)
        processes.read_to(sign)
        processes.send(signal.SIGKILL, ranks)
        assert processes.end_soon() != 0, processes.text
    processes = train("killed")
    assert processes.end() == 0, processes.text
    same_result(run_in(directory / "killed"), whole)


def test_signals_to_one_or_all(directory: Path, train: Any, whole: Finished) -> None:
    """In an epoch they save together; while they begin or score there is nothing to save."""
    for sign, ranks in (
        ("process 1 is", OTHER),
        ("level 0  epoch 1/3", FIRST),
        ("level 0  epoch 2/3", OTHER),
        ("level 1  pruning:", FIRST),
        ("level 1  pruning:", OTHER),
        ("level 1  pruning:", ALL),
        ("level 1  epoch 2/3", ALL),
    ):
        processes = train("signals", slow=0.02)
        processes.read_to(sign)
        if "epoch" in sign:
            processes.read_to("passed")
        processes.send(signal.SIGTERM, ranks)
        assert processes.end_soon() == 143, processes.text
        if "epoch" in sign:
            stopped = re.search(r"stopped by SIGTERM in epoch (\d) after step (\d+), saved ", processes.text)
            assert stopped is not None, processes.text
            content = checkpoint(levels_of(run_in(directory / "signals"))[-1].last_checkpoint)
            assert (content["epoch"] + 1, content["global_step"]) == (int(stopped[1]), int(stopped[2]))
            assert content["global_step"] % 20
        assert "Traceback" not in processes.text
    processes = train("signals")
    assert processes.end() == 0, processes.text
    same_result(run_in(directory / "signals"), whole)


@pytest.mark.parametrize("torchrun", [False, True], ids=["lightning", "torchrun"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_stopped_at_random_moments(
    number: signal.Signals, torchrun: bool, directory: Path, train: Any, whole: Finished
) -> None:
    """From the start of the command to its end; the launcher, one process, or all that there are by then."""
    draws = random.Random(f"{number} {torchrun}")
    victims = (AGENT, FIRST, OTHER, ALL, AGENT + ALL) if torchrun else (FIRST, OTHER, ALL)
    num_stops = num_runs = 0
    while num_stops < NUM_STOPS:
        num_runs += 1
        name, code = f"random_{number}_{torchrun}_{num_runs}", 1
        while code != 0:
            processes = train(name, torchrun=torchrun)
            if num_stops < NUM_STOPS:
                time.sleep(draws.uniform(0.0, 1.0) * whole.seconds)
                processes.command.read_available()
                there = [rank for rank in draws.choice(victims) if rank in processes.ids]
                processes.send(number, tuple(there) or victims[0])
                code = processes.end_soon()
                num_stops += code != 0
            else:
                code = processes.end()
                assert code == 0, processes.text
            if number == signal.SIGTERM and not torchrun:  # shells take the last, of one that has just begun, for 143
                assert code in (0, 143, -signal.SIGTERM), processes.text
                assert "Traceback" not in processes.text
        same_result(run_in(directory / name), whole)


def test_torchrun(directory: Path, train: Any, whole: Finished) -> None:
    """The agent, one of its processes or all of them; its exit codes are its own."""
    for sign, number, ranks in (
        ("level 0  epoch 1/3", signal.SIGTERM, AGENT + ALL),
        ("level 0  epoch 2/3", signal.SIGKILL, AGENT),
        ("level 1  pruning:", signal.SIGTERM, AGENT),
        ("level 1  epoch 2/3", signal.SIGTERM, OTHER),
    ):
        processes = train("torchrun", slow=0.02, torchrun=True)
        processes.read_to(sign)
        if "epoch" in sign:
            processes.read_to("passed")
        processes.send(number, ranks)
        assert processes.end_soon() != 0, processes.text
        if "epoch" in sign and number == signal.SIGTERM:
            assert re.search(r"stopped by SIGTERM in epoch \d after step \d+, saved ", processes.text), processes.text
    processes = train("torchrun", torchrun=True)
    assert processes.end() == 0, processes.text
    same_result(run_in(directory / "torchrun"), whole)


def test_four_processes(directory: Path, train: Any) -> None:
    """Saved inside an epoch, then killed in the next: it ends as if nothing had been, with a random state for each."""
    without_levels(directory)
    words = ("--config", "short.yaml", "--trainer.devices", "4", "--pruning.density", "0.3")
    processes = train("four_whole", *words, processes=4)
    assert processes.end() == 0, processes.text
    assert processes.ids.keys() == {0, 1, 2, 3}
    for sign, number, ranks in (("epoch 1/3", signal.SIGTERM, (2,)), ("epoch 2/3", signal.SIGKILL, (3,))):
        processes = train("four", *words, processes=4, slow=0.02)
        processes.read_to(sign)
        processes.read_to("passed")
        processes.send(number, ranks)
        assert (processes.end_soon() == 143) == (number == signal.SIGTERM), processes.text
    processes = train("four", *words, processes=4)
    assert processes.end() == 0, processes.text
    assert "resuming from" in processes.text
    found = left(run_in(directory / "four"))
    assert len(found["level_00"]["last"]["random_state_of_ranks"]) == 4
    assert_equal(found, left(run_in(directory / "four_whole")))


def test_the_first_process_looks_for_all(directory: Path, train: Any, whole: Finished) -> None:
    """A file that the other does not see: where the first can decide for both it does, otherwise both stop."""
    processes = train("blind", BLIND="best.ckpt")
    assert processes.end() == 0, processes.text
    same_result(run_in(directory / "blind"), whole)
    processes = train("blind_start", slow=0.02)
    processes.read_to("level 0  epoch 3/3")  # last.ckpt is of the second epoch at least, and there is a previous one
    processes.send(signal.SIGKILL, ALL)
    processes.end_soon()
    processes = train("blind_start", BLIND="last.ckpt")
    assert processes.end() == 2, processes.text
    message = "setup: other starting point on rank 1 than on rank 0; all 2 processes stop"
    assert processes.text.count(message) == 1, processes.text


def test_a_signal_while_it_waits_for_another_node(train: Any) -> None:
    """Which never comes. No handler has its turn then."""
    words = ("--config", "killed.yaml", "--trainer.num_nodes", "2", "--trainer.devices", "1")
    processes = train("alone", *words, processes=1, MASTER_ADDR="127.0.0.1", MASTER_PORT="0", NODE_RANK="0")
    processes.read_to("process 0 is")
    time.sleep(1.0)
    processes.send(signal.SIGTERM, FIRST)
    assert processes.end_soon() == 143, processes.text


def test_fresh_under_torchrun(directory: Path, train: Any) -> None:
    """Whichever process comes first, none goes by what the other sets aside; and a restart by the agent goes on."""
    without_levels(directory)
    short = ("--config", "short.yaml", "--trainer.max_epochs", "1", "--pruning.density", "0.3")
    processes = train("fresh", *short)
    assert processes.end() == 0, processes.text
    run = run_in(directory / "fresh")
    before = left(run)
    for late in ("0", "1"):
        processes = train("fresh", *short, "--fresh", torchrun=True, LATE=late)
        assert processes.end() == 0, processes.text
        kept = run.with_name(f"{run.name}.{int(late) + 1}")
        assert f"what was there is kept as {kept.relative_to(directory)}\n" in processes.command.lines
        assert "finished earlier" not in processes.text
        assert "resuming from" not in processes.text
        assert_equal(left(kept, ran_in=run), before)
        assert_equal(left(run), before)
    processes = train("fresh", *short, "--fresh", TORCHELASTIC_RESTART_COUNT="1")
    assert processes.end() == 0, processes.text
    assert "finished earlier" in processes.text


def test_a_real_command(directory: Path, torchrun: Any, train: Any, whole: Finished) -> None:
    """Of torchrun, whose agent is killed; what one launcher has begun the other one ends."""
    processes = torchrun("--output_dir", "real")
    processes.read_to("epoch 1/3")
    processes.read_to("passed")
    processes.send(signal.SIGKILL, (-1,))
    processes.end_soon()
    assert processes.ids.keys() == {-1, 0, 1}
    processes = train("real")
    assert processes.end() == 0, processes.text
    assert "resuming from" in processes.text
    same_result(run_in(directory / "real"), whole)
