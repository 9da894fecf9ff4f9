"""Two real processes (gloo, CPU) through train.py: one directory, one mask, every test picture counted once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
CONFIG = """\
# A tiny run on generated pictures
model:
  net: {name: mlp, num_classes: 2, in_channels: 3, image_size: 6, width: 8, depth: 2}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
data: {name: image_folder, batch_size: 8, val_size: 8, augment: crop, padding: 1}
pruning: {criterion: snip, density: 0.5}
tickets: {levels: 2, rewind_step: 3}
trainer: {max_epochs: 2, accelerator: cpu}
"""


def make_pictures(root: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for split, num_pictures in (("train", 40), ("test", 101)):
        for index in range(num_pictures):
            folder = root / split / ("dark", "bright")[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(160, (6, 6, 3), generator=generator) + 90 * (index % 2)
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{index}.png")


def words(config: Path, output_dir: Path, devices: int) -> list[str]:
    command = ["--config", str(config), "--output_dir", str(output_dir)]
    command += ["--data.root", str(config.parent / "pictures"), "--trainer.devices", str(devices)]
    return command + (["--trainer.strategy", "ddp"] if devices > 1 else [])


def run(launch: Any, config: Path, output_dir: Path, devices: int, *more: str) -> Path:
    """The run's directory."""
    command = launch([*words(config, output_dir, devices), *more], config.parent, processes=devices)
    assert command.end() == 0, command.text
    return Path(command.lines[-1].split()[-1])


def run_as_a_user_does(config: Path, output_dir: Path, devices: int) -> Path:
    """The same without a fork: Lightning starts the second process by the words of the command."""
    command = [sys.executable, str(ROOT / "train.py"), *words(config, output_dir, devices)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=config.parent, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.splitlines()[-1].split()[-1])


@pytest.fixture(scope="module")
def run_dirs(launch: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directories of the same run on one process and on two."""
    base = tmp_path_factory.mktemp("processes")
    make_pictures(base / "pictures")
    config = base / "tiny.yaml"
    config.write_text(CONFIG)
    return run(launch, config, base / "on1", 1), run_as_a_user_does(config, base / "on2", 2)


@pytest.fixture(scope="module")
def sparse_dirs(launch: Any, run_dirs: tuple[Path, Path]) -> tuple[Path, Path]:
    """The directories of a sparser run: masked on one process, compact on two."""
    base = run_dirs[0].parents[1]
    sparse = ("--pruning.density", "0.03")
    masked = run(launch, base / "tiny.yaml", base / "masked", 1, *sparse)
    return masked, run(
        launch,
        base / "tiny.yaml",
        base / "compact",
        2,
        *sparse,
        "--pruning.compact",
        "true",
        "--pruning.compact_multiple",
        "1",
    )


@pytest.mark.parametrize("level", ["level_00", "level_01"])
def test_two_processes_train_the_small_network_as_one_the_masked(sparse_dirs: tuple[Path, Path], level: str) -> None:
    masked, compact = (json.loads((path / level / "record.json").read_text()) for path in sparse_dirs)
    assert compact["masks_digest"] == masked["masks_digest"]
    assert compact["num_channels_compact"] < compact["num_channels"]
    assert compact["steps"] == masked["steps"] == 8
    assert compact["leaked_weights"] == 0
    assert compact["train_loss"] == pytest.approx(masked["train_loss"], rel=1e-5)
    assert compact["test_accuracy"] == pytest.approx(masked["test_accuracy"], abs=1e-6)


@pytest.mark.parametrize("level", ["level_00", "level_01"])
def test_the_number_of_processes_changes_nothing(run_dirs: tuple[Path, Path], level: str) -> None:
    one, two = (json.loads((path / level / "record.json").read_text()) for path in run_dirs)
    assert run_dirs[0].name == run_dirs[1].name
    assert one["masks_digest"] == two["masks_digest"]
    assert one["steps"] == two["steps"] == 8
    assert two["leaked_weights"] == 0
    # 101 pictures on two processes, none padded in: equal as fractions of 101
    assert one["test_accuracy"] == pytest.approx(two["test_accuracy"], abs=1e-6)
    assert round(two["test_accuracy"] * 101, 3) == pytest.approx(round(two["test_accuracy"] * 101), abs=1e-3)
    assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-5)
    states = [torch.load(path / level / "last.ckpt", weights_only=True)["state_dict"] for path in run_dirs]
    for name, weights in states[0].items():
        torch.testing.assert_close(weights, states[1][name], rtol=1e-4, atol=1e-6)


def test_one_directory_one_config_one_event_file_a_level(run_dirs: tuple[Path, Path]) -> None:
    every = {"best.ckpt", "last.ckpt", "masks.pt", "metrics.csv", "previous.ckpt", "record.json", "ticket.pt"}
    for run_dir in run_dirs:
        assert [path.name for path in run_dir.parent.iterdir()] == [run_dir.name]
        files = {"config.yaml", "lock", "versions.yaml"}
        assert {path.name for path in run_dir.iterdir()} == {*files, "level_00", "level_01", "summary"}
        for level, own in (("level_00", {"rewind.ckpt"}), ("level_01", set())):
            names = {path.name for path in (run_dir / level).iterdir()}
            events = {name for name in names if name.startswith("events.")}
            assert len(events) == 1
            assert names - events == every | own
