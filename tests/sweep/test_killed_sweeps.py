"""A real sweep that is stopped, and killed with all that it started, ends as one that was left alone."""

from __future__ import annotations

import os
import signal

from .conftest import Command
from .slow_sweeps import Sweeping


def test_a_run_made_by_hand_is_not_made_again_and_a_failed_one_stops_no_other(
    whole: Command, sweeping: Sweeping
) -> None:
    assert whole.end() == 1, whole.text
    assert "3 cells, 1 done, 2 queued\n2 runs at a time, threads of each: 1;" in whole.text
    assert "running 1 of 3" not in whole.text
    first, second, third = sweeping.states("whole", "three")
    assert [state["state"] for state in (first, second, third)] == ["done", "done", "failed"]
    assert second["detail"].startswith("test accuracy ")
    assert third["detail"].startswith("train.py: error: optimizer, schedule or trainer")
    assert third["detail"].endswith(f", see {third['log']}")
    logs = sweeping.logs("whole", "three")
    assert logs[0] == ""
    assert logs[1].startswith(f"$ {second['command']}\n")
    assert second["command"] == (
        "OMP_NUM_THREADS=1 python train.py --config slow.yaml --model.optimizer.lr 0.05 --seed_everything 7 "
        "--output_dir whole"
    )
    assert (sweeping.directory / "whole/sweeps/three/results.csv").exists()
    assert "1 of 3 cells failed" in whole.text
    assert whole.processes() == {}


def test_ctrl_c_and_kills_change_nothing(whole: Command, sweeping: Sweeping) -> None:
    words = ("killed", "two.yaml", "--engine", "local")

    # Ctrl-C: the run saves inside its epoch and leaves
    stopped = sweeping(*words)
    stopped.until(lambda: sweeping.checkpoints("killed") == 1)
    stopped.send(signal.SIGINT)
    assert stopped.end() == 130
    assert "stopped by SIGINT: 2 queued; the same command goes on" in stopped.text
    assert stopped.processes() == {}
    log = next((sweeping.directory / "killed/sweeps/two/logs").glob("slow-*")).read_text()
    assert "stopped by SIGTERM in epoch" in log

    # kill -9 of the driver: the same command goes on, once nothing is left
    killed = sweeping(*words)
    killed.until(lambda: "resuming from" in sweeping.logs("killed")[0] if began(killed) else False)
    killed.send(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    killed.until(lambda: not killed.processes())

    # kill -9 of the run, then of the server that the next one is a fork of
    begun = sweeping.logs("killed")[0].count("$ ")
    last = sweeping(*words)
    # by then its server has imported all, and forks for nothing else
    last.until(lambda: sweeping.logs("killed")[0].count("$ ") > begun)
    server, run = run_of(last)
    os.kill(run, signal.SIGKILL)
    last.until(lambda: sweeping.checkpoints("killed") == 2)
    assert run_of(last)[0] == server
    os.kill(server, signal.SIGKILL)
    assert last.end() == 0, last.text
    assert "again, 1 of 3 times: killed by SIGKILL" in last.text
    assert "again, 1 of 3 times: its server died" in last.text
    assert last.processes() == {}
    assert sweeping.results("killed") == sweeping.results("whole")
    assert len(sweeping.results("killed")) == 2


def began(command: Command) -> bool:
    return "running 1 of 2" in command.text


def run_of(command: Command) -> tuple[int, int] | None:
    """The ids of the fork server and of the run, if there is one."""
    return next(((server, run) for _, server, run in command.runs()), None)
