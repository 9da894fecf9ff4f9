"""What runs of the tests leave, read; and runs that are interrupted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prunelab.experiment.run_dir import LevelDir
from prunelab.models import mlp

LESS = {"trainer.max_epochs": 2}


def record_of(level: LevelDir) -> dict[str, Any]:
    return json.loads(level.record.read_text())


def rows_of(level: LevelDir) -> list[dict[str, str]]:
    with level.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoint_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def net_of(checkpoint: dict[str, Any]) -> torch.nn.Module:
    net = mlp(num_classes=3, in_channels=1, image_size=6, depth=2, width=8)
    net.load_state_dict({name.removeprefix("net."): value for name, value in checkpoint["state_dict"].items()})
    return net.eval()


def events_of(level: LevelDir) -> EventAccumulator:
    return EventAccumulator(str(level.path)).Reload()


def same_result(one: LevelDir, other: LevelDir) -> None:
    """Weights, optimizer, schedule, masks, metrics and record of two runs, bit for bit; their times differ."""
    first, second = checkpoint_of(one.last_checkpoint), checkpoint_of(other.last_checkpoint)
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())
    for state, other_state in zip(first["optimizer_states"], second["optimizer_states"], strict=True):
        for index, slots in state["state"].items():
            assert all(torch.equal(slot, other_state["state"][index][name]) for name, slot in slots.items())
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert (first["epoch"], first["global_step"]) == (second["epoch"], second["global_step"])
    assert one.masks.read_bytes() == other.masks.read_bytes()
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
    records = [record_of(level) for level in (one, other)]
    for record in records:
        for key in ("seconds_scoring", "seconds_training", "latency_ms", "latency_128_ms"):
            assert record.pop(key) >= 0
    assert records[0] == records[1]


class Interrupted(Exception):
    pass


class InterruptAt(Callback):
    """Stop in the middle of an epoch, from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise Interrupted


class CountSteps(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.count += 1


def interrupt(experiment: Any, epoch: int, **changes: Any) -> LevelDir:
    experiment.callbacks = [InterruptAt(epoch)]
    with pytest.raises(Interrupted):
        experiment(**changes)
    experiment.callbacks = []
    return experiment.level(**changes)
