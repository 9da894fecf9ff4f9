"""A real run of one level, killed with SIGKILL where it stands, and started again until it is done."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch

CONFIG = """\
# A tiny run on the digits that ship
model:
  net: {name: mlp, in_channels: 1, image_size: 8, width: 16}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 1e-4}
  lr_scheduler: {name: multistep, milestones: [2, 4], gamma: 0.1}
data: {name: digits, batch_size: 32, augment: crop}
pruning: {criterion: synflow, density: 0.1, rounds: 20}
trainer: {max_epochs: 6, accelerator: cpu}
"""


def test_a_run_that_is_killed_ends_as_one_that_was_not(start: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)

    def train(output_dir: str) -> Any:
        return start(["--config", "tiny.yaml", "--output_dir", str(tmp_path / output_dir)], tmp_path)

    # while it scores, at the latest just after; and when its row is in metrics.csv, its checkpoint comes next
    for sign in ("pruning:", "epoch 3/6"):
        command = train("killed")
        command.read_to(sign)
        command.send(signal.SIGKILL)
        assert command.end() == -signal.SIGKILL, command.text
    resumed, whole = train("killed"), train("whole")
    for command in (resumed, whole):
        assert command.end() == 0, command.text
    assert "resuming from" in resumed.text
    assert "scoring skipped" in resumed.text
    assert "pruning:" not in resumed.text

    run_dirs = [Path(command.lines[-1].split()[-1]) for command in (resumed, whole)]
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
        assert record.pop("latency_128_ms") > 0
    assert records[0] == records[1]
