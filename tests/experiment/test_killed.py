"""A real run of train.py, killed with SIGKILL where it stands, and started again until it is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunelab.cli import main

ROOT = Path(__file__).parents[2]
CONFIG = """\
# A tiny run on the digits that ship
model:
  net: {name: mlp, in_channels: 1, image_size: 8, width: 16}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 1e-4}
  lr_scheduler: {name: multistep, milestones: [4, 8], gamma: 0.1}
data: {name: digits, batch_size: 32, augment: crop}
pruning: {criterion: synflow, density: 0.1, rounds: 20}
trainer: {max_epochs: 12, accelerator: cpu}
"""


def start(config: Path, output_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--output_dir", str(output_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=config.parent, env=environment)


def kill_at(process: subprocess.Popen[str], sign: str) -> list[str]:
    """Kill the process as soon as it prints a line with `sign`; returns its lines up to that one."""
    assert process.stdout is not None
    lines = []
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            if sign in line:
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait() == -signal.SIGKILL, "".join(lines)
    return lines


def finish(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output.splitlines()


def test_a_run_that_is_killed_ends_as_one_that_was_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "killed.yaml"
    config.write_text(CONFIG)
    kill_at(start(config, tmp_path / "killed"), "pruning:")  # while it scores, at the latest just after
    kill_at(start(config, tmp_path / "killed"), "epoch 5/12")  # its row is in metrics.csv, its checkpoint comes next
    lines = finish(start(config, tmp_path / "killed"))
    assert any("resuming from" in line for line in lines)
    assert any("scoring skipped" in line for line in lines)
    assert not any("pruning:" in line for line in lines)

    assert main(["--config", str(config), "--output_dir", str(tmp_path / "whole")]) == 0
    run_dirs = [Path(output.split()[-1]) for output in (lines[-1], capsys.readouterr().out)]
    assert [path.parent.name for path in run_dirs] == ["killed", "whole"]
    killed, expected = (path / "level_00" for path in run_dirs)
    for name in ("masks.pt", "metrics.csv"):
        assert (killed / name).read_bytes() == (expected / name).read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(path / name, weights_only=True) for path in (killed, expected))
        assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())
        for index, slots in one["optimizer_states"][0]["state"].items():
            assert torch.equal(
                slots["momentum_buffer"], other["optimizer_states"][0]["state"][index]["momentum_buffer"]
            )
        assert one["lr_schedulers"] == other["lr_schedulers"]
        assert one["epoch"] == other["epoch"]
    records = [json.loads((path / "record.json").read_text()) for path in (killed, expected)]
    for record in records:
        assert record.pop("seconds_scoring") > 0
        assert record.pop("seconds_training") > 0
        assert record.pop("latency_ms") > 0
    assert records[0] == records[1]
