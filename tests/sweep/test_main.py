"""The command line: one line for a mistake, exit code 2, nothing written; what a plan says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunelab.sweep.__main__ import _parser, _slots, main
from prunelab.sweep.file import read_sweep
from prunelab.sweep.plan import plan

SWEEP = """\
# Two densities
base: tiny.yaml
grid: {pruning.density: [0.5, 0.2]}
repeats: 1
"""


@pytest.fixture
def sweep(here: Path) -> Path:
    path = here / "many.yaml"
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: --config"),
        ("--config nothing", "no sweep 'nothing' here or in sweeps/"),
        ("--config many.yaml --config many.yaml", "--config: give one sweep"),
        ("many.yaml", "the following arguments are required: --config"),
        ("--config many.yaml other.yaml", "unexpected 'other.yaml'"),
        ("--config many.yaml --solts 2", "unknown option --solts, did you mean --slots?"),
        ("--config many.yaml --slots 0", "argument --slots: expected a whole number of at least 1, got 0"),
        ("--config many.yaml --gpus some", "argument --gpus: expected a number of at least 0, got some"),
        ("--config many.yaml --engine dask", "argument --engine: invalid choice: 'dask'"),
        ("--config many.yaml --engine local --address here:1", "--address needs Ray"),
        ("--config many.yaml --engine local --gpus 1", "--gpus needs Ray"),
        ("--config many.yaml --trainer.max_epochs", "--trainer.max_epochs needs a value"),
        ("--config many.yaml --pruning.density 0.1", "pruning.density is varied by the grid"),
        ("--config many.yaml --trainer.max_epoch 1", "unknown key trainer.max_epoch, did you mean trainer.max_epochs?"),
        ("--config many.yaml --model.net vgg16_bn", "vgg16_bn"),
        ("--config many.yaml --output_dir tiny.yaml", "tiny.yaml"),
    ],
)
def test_mistakes(words: str, message: str, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(sweep.parent.rglob("*"))
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("prunelab.sweep: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(sweep.parent.rglob("*")) == before


def test_without_ray(sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    assert main(["--config", "many.yaml", "--engine", "ray"]) == 2
    assert main(["--config", "many.yaml", "--address", "here:1"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "prunelab.sweep: error: --engine ray needs Ray: pip install 'prunelab[sweep]'"
    assert errors[1].startswith("prunelab.sweep: error: --address needs Ray")


def test_an_address_is_tried_before_anything_else(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "many.yaml", "--address", "somewhere"]) == 2
    assert "--address: expected HOST:PORT" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_plan(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "many.yaml", "--plan", "--slots", "2"]) == 0
    first = capsys.readouterr().out
    assert first.splitlines() == [
        "Two densities",
        "to run   pruning.density 0.5, seed_everything 0",
        "         OMP_NUM_THREADS=1 python train.py --config tiny.yaml --pruning.density 0.5 --seed_everything 0",
        "to run   pruning.density 0.2, seed_everything 0",
        "         OMP_NUM_THREADS=1 python train.py --config tiny.yaml --pruning.density 0.2 --seed_everything 0",
        "",
        "2 cells in runs: 0 done, 2 to run; how long is unknown: no run of some kind (network, data, training) has "
        "finished yet",
    ]
    assert not Path("runs").exists()

    done, begun = plan(read_sweep(sweep), "runs")
    record: dict[str, Any] = {"max_epochs": 2, "epochs": 2, "out_of_time": False}
    done.run_dir.level(0).path.mkdir(parents=True)
    done.run_dir.level(0).record.write_text(json.dumps(record | {"seconds_scoring": 2.0, "seconds_training": 118.0}))
    begun.run_dir.level(0).path.mkdir(parents=True)
    begun.run_dir.level(0).last_checkpoint.touch()
    assert main(["--config", "many.yaml", "--plan", "--engine", "local"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:5:2]] == ["done", "goes on"]
    assert lines[-1] == (
        "2 cells in runs: 1 done, 1 to run; about 2 minutes one at a time, by the finished runs of the same network, "
        "data and training"
    )


def test_simple_mistakes_are_answered_before_anything_heavy_is_imported(sweep: Path) -> None:
    sweep.write_text("base: tiny.yaml\ngrid: {}")
    command = [sys.executable, "-X", "importtime", "-m", "prunelab.sweep", "--config", str(sweep)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    *imported, error = result.stderr.splitlines()
    assert error == f"prunelab.sweep: error: {sweep}: grid: is empty; give keys with lists of values, such as " + (
        "pruning.criterion: [synflow, snip]"
    )
    names = {line.rpartition("|")[2].strip() for line in imported}
    assert "prunelab.sweep.file" in names
    assert not names & {"torch", "pytorch_lightning", "ray", "rich", "jsonargparse"}


@pytest.mark.parametrize(
    ("words", "gpus", "slots"),
    [("", 0, 8), ("--threads 3", 0, 2), ("", 2, 2), ("--gpus 0.25", 1, 4), ("--gpus 0", 1, 8), ("--slots 5", 1, 5)],
)
def test_as_many_runs_as_processors_and_gpus_allow(
    words: str, gpus: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunelab.sweep.on_ray.num_processors", lambda: 8)
    monkeypatch.setattr("prunelab.sweep.local.visible_gpus", lambda: ["0", "1"][:gpus])
    asked = _parser().parse_args(["--config", "many.yaml", "--engine", "ray", *words.split()])
    assert _slots(asked) == slots
