"""lightning-bolts' classes by name in a config, where it is installed."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from prunelab.cli import build_parser, resolve
from prunelab.command_line import read_command
from prunelab.compat.bolts import load_bolts
from prunelab.names import CommandError

INSTALLED = importlib.util.find_spec("pl_bolts") is not None
SCHEDULE = """\
model:
  net: lenet_300_100
  optimizer: {name: sgd, lr: 0.5}
  lr_scheduler:
    class_path: pl_bolts.optimizers.lr_scheduler.LinearWarmupCosineAnnealingLR
    init_args: {warmup_epochs: 5, max_epochs: 40, warmup_start_lr: 0.1, eta_min: 0.01}
data:
  class_path: pl_bolts.datamodules.CIFAR10DataModule
  init_args: {batch_size: 7, data_dir: nowhere}
pruning: {criterion: magnitude, density: 0.5}
"""


@pytest.mark.skipif(not INSTALLED, reason="lightning-bolts is not installed")
def test_data_module_and_warm_up_cosine_from_a_yaml(tmp_path: Path) -> None:
    path = tmp_path / "bolts.yaml"
    path.write_text(SCHEDULE)
    parser = build_parser()
    built = parser.instantiate(resolve(parser, read_command(["--config", str(path)]).config))
    assert type(built.data).__module__.startswith("pl_bolts.")
    assert built.data.batch_size == 7

    configured = built.model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    seen = []
    for _ in range(40):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warm_up = [0.1 + (0.5 - 0.1) * epoch / 4 for epoch in range(5)]
    cosine = [0.01 + (0.5 - 0.01) * (1 + math.cos(math.pi * (epoch - 5) / 35)) / 2 for epoch in range(5, 40)]
    assert seen == pytest.approx(warm_up + cosine, rel=1e-9)


@pytest.mark.skipif(not INSTALLED, reason="lightning-bolts is not installed")
def test_loading_twice_is_loading_once() -> None:
    load_bolts()
    load_bolts()
    from pytorch_lightning.utilities.apply_func import apply_to_collection, move_data_to_device

    assert apply_to_collection([1, "a"], int, lambda number: number + 1) == [2, "a"]
    assert torch.equal(move_data_to_device(torch.ones(2), torch.device("cpu")), torch.ones(2))


def test_without_it_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pl_bolts" else find_spec(name))
    path = tmp_path / "bolts.yaml"
    path.write_text(SCHEDULE)
    with pytest.raises(CommandError, match="pip install --no-deps lightning-bolts"):
        resolve(build_parser(), read_command(["--config", str(path)]).config)
