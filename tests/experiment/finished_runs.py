"""What runs leave behind, to be compared bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.training.resume import read_checkpoint

# 20 steps an epoch with digits: the rewind point is in the middle of the second one. To be filled in: what is trained
CONFIG = """\
# Batch norm, dropout, momentum, augmentation: all that a rewound and a resumed training has to bring back
model:
  net: {{class_path: noisy_net.NoisyNet}}
  optimizer: {{name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 1e-4}}
  lr_scheduler: {{name: step, step_size: 1, gamma: 0.5}}
data: {{name: digits, batch_size: 64, augment: crop, padding: 1}}
pruning: {{criterion: iterative_snip, rounds: 10}}
tickets: {{dense_first: true, density_per_level: 0.5, rewind_step: 30it, {tickets}}}
trainer: {{max_epochs: 3, accelerator: cpu, {trainer}}}
"""
OF_THE_CLOCK = ("latency_ms", "latency_128_ms", "seconds_scoring", "seconds_training", "Timer")
NOT_RESTORED = ("current_score",)  # Lightning's ModelCheckpoint forgets it, and does nothing with it


@dataclass(frozen=True)
class Finished:
    """A run that nothing has interrupted."""

    path: Path
    seconds: float
    text: str


def write_module_and_config(directory: Path, net: str, **missing: str) -> Path:
    """The files noisy_net.py, of code `net`, and killed.yaml; returns `directory`, where the commands are given."""
    (directory / "noisy_net.py").write_text(net)
    (directory / "killed.yaml").write_text(CONFIG.format(**missing))
    return directory


def run_in(output_dir: Path) -> Path:
    """The run that is there, without those that --fresh has set aside; before there is one, a path without files."""
    runs = [path for path in output_dir.glob("*") if not path.name[-2:].startswith(".")]
    assert len(runs) <= 1
    return runs[0] if runs else output_dir / "none"


def levels_of(run: Path) -> list[LevelDir]:
    return RunDir(run).levels()


def checkpoint(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    assert content is not None
    return content


def left(run: Path, ran_in: Path | None = None) -> dict[str, Any]:
    """All that the levels of a run leave, whenever it ran, and wherever: `ran_in`, if it has been moved since."""
    found: dict[str, Any] = {"files": sorted(path.name for path in run.iterdir())}
    for level in levels_of(run):
        found[level.path.name] = {
            "files": sorted(path.name for path in level.path.iterdir() if "tfevents" not in path.name),
            "record": json.loads(level.record.read_text()),
            "metrics": level.metrics.read_bytes(),
            "masks": torch.load(level.masks, weights_only=True),
            "ticket": torch.load(level.ticket, weights_only=True),
            "last": checkpoint(level.last_checkpoint),
            "best": checkpoint(level.best_checkpoint),
        }
    return _without(found, OF_THE_CLOCK + NOT_RESTORED, ran_in or run)


def _without(value: Any, keys: tuple[str, ...], path: Path) -> Any:
    """A nested value without `keys`, at any depth, and without `path` in its texts."""
    if isinstance(value, dict):
        items = ((_without(key, keys, path), inner) for key, inner in value.items() if key not in keys)
        return {key: _without(inner, keys, path) for key, inner in items}
    if isinstance(value, list | tuple):
        return [_without(inner, keys, path) for inner in value]
    return value.replace(str(path), "") if isinstance(value, str) else value


def assert_equal(one: Any, other: Any, path: str = "") -> None:
    """Nested values that are the same, tensors bit for bit."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key, value in one.items():
            assert_equal(value, other[key], f"{path}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for index, (value, counterpart) in enumerate(zip(one, other, strict=True)):
            assert_equal(value, counterpart, f"{path}/{index}")
    else:
        assert one == other, path
