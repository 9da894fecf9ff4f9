"""A mistake of the user's gets one line on stderr, exit code 2, no traceback, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from prunelab.cli import main

ROOT = Path(__file__).resolve().parents[1]
BASE = """\
model:
  net: {name: mlp, depth: 2, width: 8, image_size: 8}
  optimizer: {name: sgd, lr: 0.1}
data: {name: digits, device: cpu}
pruning: {criterion: magnitude, density: 0.5}
trainer: {max_epochs: 1, limit_train_batches: 2, accelerator: cpu}
"""

# file name -> content of further configs, beside base.yaml
FILES = {
    "syntax.yaml": "model:\n  net: [mlp,\n",
    "tab.yaml": "model:\n\tnet: mlp\n",
    "list.yaml": "- model\n",
    "twice.yaml": "data: digits\ntrainer: {max_epochs: 1}\ndata: mnist\n",
    "two_densities.yaml": "pruning: {density: 0.5, sparsity: 0.5}\n",
    "none.yaml": "pruning: {density: null}\n",
    "percent.yaml": "pruning: {density: 10%}\n",
    "nan.yaml": "pruning: {density: .nan}\n",
    "unknown_key.yaml": "pruning: {densty: 0.5}\n",
    "unknown_group.yaml": "prunning: {density: 0.5}\n",
    "unknown_knob.yaml": "pruning: {criterion: {name: magnitude, temperature: 200}}\n",
    "unknown_name.yaml": "pruning: {criterion: sniip}\n",
    "number_for_a_name.yaml": "model: {net: 20}\n",
}

# words after `--config base.yaml` -> what the message says
MISTAKES = [
    # configs
    ("--config synflow_resnet2.yaml", "here or in configs/, did you mean synflow_resnet20.yaml?"),
    ("--config syntax.yaml", "syntax.yaml:3: "),
    ("--config tab.yaml", "tab.yaml:2: found character '\\t'"),
    ("--config list.yaml", "list.yaml: expected keys such as `model:`, got list"),
    ("--config twice.yaml", "twice.yaml:3: data is given twice"),
    ("--config", "--config needs a value"),
    # words
    ("base.yaml", "unexpected 'base.yaml': --config base.yaml"),
    ("density=0.1", "unexpected 'density=0.1': options are written --key value"),
    ("--trainer.fast_dev_run --data.batch_size 4", "--trainer.fast_dev_run needs a value"),
    ("--pruning.exclude [a,", "pruning.exclude: [a, is not a YAML list or mapping"),
    # unknown keys
    ("--config unknown_key.yaml", "unknown key pruning.densty, did you mean pruning.density?"),
    ("--config unknown_group.yaml", "unknown key prunning.density, did you mean pruning.density?"),
    ("--config unknown_knob.yaml", "unknown key pruning.criterion.temperature; magnitude takes rounds, normalise"),
    ("--pruning.criterion snip --pruning.criterion.input ones", "pruning.criterion.input; snip takes rounds,"),
    ("--pruning.criterion synflow --pruning.criterion.round 3", "mean pruning.criterion.rounds? synflow takes rounds,"),
    ("--trainer.max_epoch 3", "unknown key trainer.max_epoch, did you mean trainer.max_epochs?"),
    ("--trainer.batch_size 3", "unknown key trainer.batch_size, did you mean data.batch_size?"),
    ("--data.batchsize 3", "unknown key data.batchsize, did you mean data.batch_size? digits takes batch_size,"),
    ("--model.net.widht 3", "unknown key model.net.widht, did you mean model.net.width? mlp takes num_classes,"),
    ("--lr 0.1", "unknown key lr, did you mean model.optimizer.lr?"),
    ("--density 0.1", "unknown key density, did you mean pruning.density?"),
    ("--nonsense 1", "unknown key nonsense; --help_all lists all keys"),
    # wrong types
    ("--data.batch_size many", "data.batch_size: expected int, got many"),
    ("--trainer.max_epochs 1.5", "trainer.max_epochs: expected int or null, got 1.5"),
    ("--model.optimizer.lr fast", "model.optimizer.lr: expected float or Tensor, got fast"),
    ("--model.channels_last maybe", "model.channels_last: expected bool, got maybe"),
    ("--pruning.schedule linea", "expected one of exponential, linear; got linea, did you mean linear?"),
    ("--pruning.criterion snip --pruning.criterion.batch_norm eval", "batch_norm: expected one of running, batch"),
    ("--config number_for_a_name.yaml", "number_for_a_name.yaml: model.net: expected a name or a mapping, got 20"),
    ("--seed_everything -1", "seed_everything: expected a whole number in [0, 2**32), got -1"),
    ("--seed_everything null", "seed_everything: expected a whole number in [0, 2**32), got None"),
    # unknown names
    ("--config unknown_name.yaml", "unknown_name.yaml: pruning.criterion: no 'sniip', did you mean snip?"),
    ("--pruning.criterion synflw", "pruning.criterion: no 'synflw', did you mean synflow? there are random, erk,"),
    ("--model.net resnt20", "model.net: no 'resnt20', did you mean resnet20? there are resnet20,"),
    ("--data cifar", "data: no 'cifar', did you mean cifar10? there are cifar10,"),
    ("--model.optimizer adamx", "model.optimizer: no 'adamx', did you mean adam? there are sgd,"),
    ("--model.net nowhere.Net", "model.net: cannot import nowhere.Net: No module named 'nowhere'"),
    ("--model.net prunelab.models.resnet21", "model.net: cannot import prunelab.models.resnet21: "),
    ("--pruning.criterion prunelab.models.mlp", "pruning.criterion: prunelab.models.mlp is no criterion"),
    ("--data null", "missing: data"),
    ("--model null", "missing: model.net, model.optimizer"),
    # how much to keep
    ("--pruning.density 0", "pruning.density: expected a number in (0, 1], such as 0.1 to keep 10 %, got 0"),
    ("--pruning.density 1.5", "pruning.density: expected a number in (0, 1], such as 0.1 to keep 10 %, got 1.5"),
    ("--pruning.density nan", "pruning.density: expected a number in (0, 1], such as 0.1 to keep 10 %, got nan"),
    ("--config nan.yaml", "pruning.density: expected a number in (0, 1], such as 0.1 to keep 10 %, got nan"),
    ("--pruning.density 10%", "pruning.density: expected a number in (0, 1], such as 0.1 to keep 10 %, got 10%"),
    ("--config percent.yaml", "pruning.density: expected a number in (0, 1], such as 0.1 to keep 10 %, got 10%"),
    ("--pruning.sparsity 1", "pruning.sparsity: expected a number in [0, 1), such as 0.9 to keep 10 %, got 1"),
    ("--pruning.compression_ratio 0.5", "pruning.compression_ratio: expected a number of at least 1"),
    ("--pruning.density 0.1 --pruning.sparsity 0.9", "pruning has density and sparsity: give one of them"),
    ("--config two_densities.yaml", "two_densities.yaml: pruning has density and sparsity: give one of them"),
    ("--config none.yaml", "pruning needs one of density, sparsity, compression_ratio"),
    ("--ckpt_path nowhere.ckpt", "ckpt_path: no file nowhere.ckpt"),
]  # fmt: skip


# words after `--config base.yaml`, found out only when the objects are made or meet -> what the message says
MISFITS = [
    ("--pruning.density 0.1 --pruning.min_layer_density 0.9", "needs 533 weights but the budget is 59"),
    ("--pruning.exclude+=*", "nothing to prune"),
    ("--pruning.include+=nothing*", "the pattern 'nothing*' matches no parameter"),
    ("--pruning.rounds 0", "rounds must be"),
    ("--pruning.compact true --pruning.compact_multiple 0", "compact_multiple 0: it is at least 1"),
    ("--pruning.samples_per_class 3", "samples_per_class: Magnitude scores without data"),
    ("--pruning.weights_from nowhere.pt", "weights_from: no file nowhere.pt"),
    ("--pruning.density 0.001", "no path leads from the network's input to its output"),
    ("--model.net.image_size 28", "the network cannot take pictures of 1x8x8"),
    ("--model.net.num_classes 7", "the data has 10 classes: --model.net.num_classes 10"),
    ("--model.net resnet20", "the network cannot take pictures of 1x8x8"),
    ("--model.net.depth 0", "depth is 0"),
    ("--data.batch_size 0", "batch_size 0 has to be >= 1"),
    ("--data image_folder", "missing: data.root"),
    ("--data image_folder --data.root nowhere", "no folder "),
    ("--data image_folder --data.root empty", "empty/train is empty"),
    ("--data image_folder --data.root hole", "class folder hole/test/b has no pictures"),
    ("--data image_folder --data.root corrupt", "cannot read the picture corrupt/train/b/1.png"),
    ("--ckpt_path damaged.ckpt", "damaged.ckpt"),
    ("--output_dir base.yaml", ": Not a directory"),
    ("--trainer.accelerator nonsense", "optimizer, schedule or trainer: "),
    ("--trainer.sync_batchnorm true", "trainer.sync_batchnorm works on GPUs only"),
    ("--trainer.sync_batchnorm true --trainer.devices 2", "trainer.sync_batchnorm works on GPUs only"),
    ("--model.optimizer.lr -1", "optimizer, schedule or trainer: Invalid learning rate: -1"),
    ("--trainer.max_epochs null", "say how long to train: --trainer.max_epochs or --trainer.max_steps"),
    # levels, controls, transfer
    ("--tickets.levels 1 --tickets.rewind_step 2it", "tickets.rewind_step 2it is not before the end of training"),
    ("--tickets.levels 1 --tickets.rewind_step 1ep", "which takes 2 steps (2 an epoch)"),
    ("--tickets.levels 1 --tickets.rewind_step 2epochs", "expected steps such as 500it, or epochs such as 2ep"),
    ("--tickets.densities [0.2,0.5]", "tickets.densities grow from 0.2 to 0.5"),
    ("--tickets.densities [1.5,0.5]", "tickets.densities must be in (0, 1], got 1.5"),
    ("--tickets.density_per_level 0.8", "tickets.density_per_level goes with tickets.levels"),
    ('--tickets.levels 2 --tickets.layer_rates {"nowhere*":0.5}', "nowhere* matches no prunable layer"),
    ("--tickets.levels 2 --trainer.max_time 00:00:10:00", "trainer.max_time would end levels by the clock"),
    ("--tickets.dense_first true", "tickets.dense_first: say how many levels follow"),
    ("--tickets.rewind_step 2it", "tickets.rewind and rewind_step: there are no levels that rewind"),
    ("--tickets.levels 2 --tickets.mask_1 constant --tickets.dense_first false", "tickets.mask_1 constant is about"),
    ('--tickets.levels 1 --pruning.allocation erk --tickets.layer_rates {"fc*":0.5}', "no allocation, no min_layer"),
    ("--control reinit", "control reinit needs the finished ticket runs/base-magnitude-d0.5-s0-"),
    ("--pruning.masks_from empty", "pruning.masks_from: empty is no file of masks and no run"),
    ("--pruning.masks_from damaged.ckpt", "damaged.ckpt holds no masks or is damaged"),
    ("--pruning.masks_from others.pt", "masks_from: the masks "),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with base.yaml and FILES."""
    for name, content in {"base.yaml": BASE, **FILES}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistakes_in_words(words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--config", "base.yaml", *words.split()])
    assert_one_line(code, capsys.readouterr().err, message)
    assert {path.name for path in here.iterdir()} == {"base.yaml", *FILES}


@pytest.mark.parametrize(("words", "message"), MISFITS, ids=[words for words, _ in MISFITS])
def test_misfits(words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_image_folders(here)
    (here / "damaged.ckpt").write_bytes(b"no checkpoint")
    masks = {
        "fc1.weight": torch.ones(9, 64, dtype=torch.bool),
        "classifier.weight": torch.ones(10, 9, dtype=torch.bool),
    }
    torch.save(masks, here / "others.pt")
    code = main(["--config", "base.yaml", *words.split()])
    assert_one_line(code, capsys.readouterr().err, message)
    assert not (here / "runs").exists() or list((here / "runs").iterdir()) == []


def test_checkpoint_of_another_configuration(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "base.yaml"]) == 0
    checkpoint = next(here.rglob("last.ckpt"))
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    capsys.readouterr()
    words = ["--model.optimizer.lr", "0.2", "--output_dir", "others", "--ckpt_path", str(checkpoint)]
    code = main(["--config", "base.yaml", *words])
    assert_one_line(code, capsys.readouterr().err, "model.optimizer.init_args.lr")
    assert {path: path.read_bytes() for path in before} == before
    assert results(here / "others") == []


def test_full_disk_while_saving(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--config", "base.yaml"]) == 0
    checkpoint = next(here.rglob("last.ckpt"))
    before = checkpoint.read_bytes()
    capsys.readouterr()
    opened = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        full = "w" in mode and ".ckpt" in path.name
        return opened(Path("/dev/full") if full else path, mode, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    code = main(["--config", "base.yaml", "--trainer.max_epochs", "2"])
    assert_one_line(code, capsys.readouterr().err, "No space left on device")
    assert checkpoint.read_bytes() == before
    assert list(here.rglob("*.tmp")) == []


def test_as_a_program(here: Path) -> None:
    for words, message in (("--pruning.densty 0.5", "did you mean pruning.density?"), ("--data digit", "mean digits?")):
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "--config", "base.yaml", *words.split()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert_one_line(done.returncode, done.stderr, message)
        assert done.stdout == ""


def assert_one_line(code: int, stderr: str, message: str) -> None:
    lines = [line for line in stderr.splitlines() if not line.startswith("decoding ")]  # a progress bar
    assert len(lines) == 1, stderr
    assert lines[0].startswith("train.py: error: ")
    assert message in lines[0]
    assert code == 2


def results(folder: Path) -> list[Path]:
    """What a run that got anywhere would have left below `folder`."""
    return [path for path in folder.rglob("*") if path.name in ("masks.pt", "record.json", "metrics.csv", "last.ckpt")]


def make_image_folders(folder: Path) -> None:
    for name in ("hole", "corrupt"):
        for place in ("train/a", "train/b", "test/a", "test/b"):
            (folder / name / place).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (8, 8)).save(folder / name / place / f"{index}.png")
    for path in (folder / "hole/test/b").iterdir():
        path.unlink()
    (folder / "corrupt/train/b/1.png").write_bytes(b"no picture")
    (folder / "empty/train").mkdir(parents=True)
