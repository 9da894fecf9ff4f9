from __future__ import annotations

import copy
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging

from prunelab.data.augment import Normalisation, RandomCropFlip
from prunelab.data.loader import TensorLoader
from prunelab.pruning.criteria import Random, snip
from prunelab.report.metrics_csv import MetricsCsv, read_metrics
from prunelab.training import KeepPruned, PruningAtInit
from prunelab.training.resume import IN_MEMORY, AtomicCheckpointIO, CarryEpochMetrics, SaveRandomState, read_checkpoint


class Interrupted(Exception):
    pass


class InterruptAfter(Callback):
    """Save at the end of an epoch as a run does, and fail in the middle of the next."""

    def __init__(self, epoch: int, path: Path) -> None:
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.current_epoch == self.epoch + 1:
            raise Interrupted


class Trace(Callback):
    """Everything that a step uses and leaves."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, ...]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        draws = (random.random(), float(np.random.rand()))  # so that all generators are in use
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.steps.append((trainer.current_epoch, rate, float(outputs["loss"]), *draws))


def loader() -> TensorLoader:
    """48 random pictures in 3 batches, shuffled and augmented as the project's data modules do."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 1, 6, 6), dtype=torch.uint8, generator=generator)
    labels, indices = torch.arange(48) % 3, torch.arange(48)
    augment = RandomCropFlip(1, True, seed=5)
    normalise = Normalisation.of(images, indices)
    return TensorLoader(images, labels, indices, normalise, batch_size=16, seed=5, augment=augment)


def multistep(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 3], gamma=0.1)


def cosine(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)


SETTINGS: dict[str, dict[str, Any]] = {
    "epochs": {"lr_scheduler": multistep},
    "steps": {"lr_scheduler": cosine, "lr_interval": "step"},
    "adamw": {"optimizer": lambda p: torch.optim.AdamW(p, lr=0.01)},
}


@pytest.mark.parametrize("last_epoch", [0, 1, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_resumed_is_uninterrupted_bit_for_bit(
    setting: str, last_epoch: int, make_net: Any, make_module: Any, fit: Any, tmp_path: Path, images: Any
) -> None:
    """With dropout, Nesterov momentum, a schedule, augmentation, and draws of all generators."""

    def train(*extra: Callback, seed: int, **options: Any) -> tuple[Any, Trace, dict[str, Any]]:
        module = make_module(make_net(dropout=0.5, seed=seed), **SETTINGS[setting])
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        trace = Trace()
        pruning = PruningAtInit(snip, density=0.2, batches=[images[:16]], seed=1)
        callbacks = [pruning, KeepPruned(), SaveRandomState(), trace, *extra]
        trainer = fit(module, callbacks, data=loader(), max_epochs=4, **options)
        trainer.save_checkpoint(tmp_path / f"{seed}.ckpt")
        return module, trace, torch.load(tmp_path / f"{seed}.ckpt", weights_only=True)

    whole, whole_trace, whole_state = train(seed=1)
    with pytest.raises(Interrupted):
        train(InterruptAfter(last_epoch, tmp_path / "last.ckpt"), seed=1)
    # another seed: nothing of the interrupted training is left but its checkpoint
    resumed, trace, state = train(seed=2, ckpt_path=tmp_path / "last.ckpt")

    assert trace.steps == whole_trace.steps[3 * (last_epoch + 1) :]
    assert trace.steps
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert flat(state["optimizer_states"]) == flat(whole_state["optimizer_states"])
    assert flat(state["lr_schedulers"]) == flat(whole_state["lr_schedulers"])


def test_resumed_is_uninterrupted_with_an_averaged_copy(
    make_net: Any, make_module: Any, fit: Any, tmp_path: Path, images: Any
) -> None:
    modules = []
    for interrupt in (None, InterruptAfter(1, tmp_path / "last.ckpt"), tmp_path / "last.ckpt"):
        modules.append(make_module(make_net()))
        callbacks = [
            PruningAtInit(snip, density=0.2, batches=[images[:16]]),
            KeepPruned(),
            EMAWeightAveraging(decay=0.9),
        ]
        if isinstance(interrupt, Callback):
            with pytest.raises(Interrupted):
                fit(modules[-1], [*callbacks, interrupt], data=loader(), max_epochs=4)
        else:
            fit(modules[-1], callbacks, data=loader(), max_epochs=4, ckpt_path=interrupt)
    for name, value in modules[0].state_dict().items():
        assert torch.equal(value, modules[2].state_dict()[name]), name
    masks = callbacks[0].masks
    assert not any(modules[2].net.get_parameter(name)[~mask].any() for name, mask in masks.items())


class SaveAt(Callback):
    """Save at the end of a batch, counted over all epochs, and go on."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.batch + 1:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def train(make_net: Any, make_module: Any, fit: Any) -> Callable[..., list[dict[str, str]]]:
    """train(metrics.csv, callback, ...): 3 epochs of 3 batches; returns the rows."""

    def run(path: Path, *extra: Callback, **options: Any) -> list[dict[str, str]]:
        callbacks = [SaveRandomState(), CarryEpochMetrics(), MetricsCsv(path), *extra]
        fit(make_module(make_net(dropout=0.5)), callbacks, data=loader(), max_epochs=3, **options)
        return read_metrics(path)

    return run


@pytest.mark.parametrize("batch", [3, 4, 5])
def test_the_rows_of_a_training_that_goes_back(batch: int, train: Any, tmp_path: Path) -> None:
    """From inside the second epoch its row is that of the whole training; from its last batch that row is not there,
    and the third one's holds nothing of it."""
    checkpoint = tmp_path / "some.ckpt"
    whole = train(tmp_path / "whole.csv", SaveAt(batch, checkpoint))
    assert read_checkpoint(checkpoint) is not None
    assert train(tmp_path / "again.csv", ckpt_path=checkpoint) == (whole[1:] if batch < 5 else whole[2:])


def test_checkpoints_from_the_end_of_an_epoch_hold_no_metrics(train: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(Interrupted):
        train(tmp_path / "whole.csv", InterruptAfter(1, checkpoint))
    content = read_checkpoint(checkpoint)
    assert content is not None
    assert "epoch_metrics" not in content


def test_metrics_of_two_processes_go_on_in_one(train: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "some.ckpt"
    whole = train(tmp_path / "whole.csv", SaveAt(4, checkpoint))
    content = torch.load(checkpoint, weights_only=True)
    (of_rank,) = content["epoch_metrics"]["of_ranks"]
    assert {saved["name"] for saved in of_rank} == {"lr", "train_loss", "train_accuracy"}
    parts = [[saved | {"sums": [share * s for s in saved["sums"]]} for saved in of_rank] for share in (0.25, 0.75)]
    content["epoch_metrics"]["of_ranks"] = parts
    torch.save(content, checkpoint)
    again = train(tmp_path / "again.csv", ckpt_path=checkpoint)
    for row, expected in zip(again, whole[1:], strict=True):
        assert [float(row[name]) for name in ("lr", "train_loss", "train_accuracy")] == pytest.approx(
            [float(expected[name]) for name in ("lr", "train_loss", "train_accuracy")], rel=1e-6
        )


def flat(value: Any) -> list[Any]:
    """Plain numbers of a nested state, for comparison."""
    if isinstance(value, torch.Tensor):
        return value.flatten().tolist()
    if isinstance(value, dict):
        return [number for key in value for number in (key, *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [number for part in value for number in flat(part)]
    return [value]


def test_without_a_checkpoint_no_state_is_touched(make_module: Any, fit: Any) -> None:
    states = []

    class Look(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            states.append(torch.get_rng_state())

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            states.append(torch.get_rng_state())

    fit(make_module(), [SaveRandomState(), Look()], data=loader())
    assert torch.equal(*states)


def test_each_rank_goes_on_with_its_own_state(make_module: Any, fit: Any, tmp_path: Path) -> None:
    """And where there are other ranks than before, they take the states in turn."""
    path = tmp_path / "some.ckpt"
    fit(make_module(), [SaveRandomState()], data=loader()).save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    own = content["callbacks"]["SaveRandomState"]
    of_ranks = [own | {"torch": torch.Generator().manual_seed(seed).get_state()} for seed in (1, 2)]
    for rank in range(3):
        callback, trainer = SaveRandomState(), SimpleNamespace(global_rank=rank)
        callback.on_load_checkpoint(trainer, None, content | {"random_state_of_ranks": of_ranks})
        callback.load_state_dict(own)
        callback.on_train_start(trainer, None)
        assert torch.equal(torch.get_rng_state(), of_ranks[rank % 2]["torch"])


# --- files


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    return {"state_dict": {"weight": torch.arange(4096.0)}, "epoch": 0}


def saved(checkpoint: dict[str, Any], epoch: int) -> dict[str, Any]:
    return {**checkpoint, "epoch": epoch}


def test_the_checkpoint_before_is_kept(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    last = tmp_path / "level_00" / "last.ckpt"
    for epoch in range(3):
        AtomicCheckpointIO().save_checkpoint(saved(checkpoint, epoch), last)
        found = read_checkpoint(last)
        assert found is not None
        assert found["epoch"] == epoch
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    before = read_checkpoint(last.with_name("previous.ckpt"))
    assert before is not None
    assert before["epoch"] == 1


def test_other_checkpoints_are_simply_replaced(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    for epoch in range(2):
        AtomicCheckpointIO().save_checkpoint(saved(checkpoint, epoch), tmp_path / "best.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["fsync", "first replace", "second replace"])
def test_a_process_that_dies_while_saving_leaves_a_whole_checkpoint(
    moment: str, checkpoint: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is killed, nothing after it happens, the clearing up included."""
    last = tmp_path / "last.ckpt"
    for epoch in range(2):
        AtomicCheckpointIO().save_checkpoint(saved(checkpoint, epoch), last)
    replaced = []
    replace = Path.replace

    def die(*_: Any) -> None:
        raise Killed

    def counting_replace(source: Path, target: Path) -> Path:
        replaced.append(target)
        if len(replaced) == (1 if moment == "first replace" else 2):
            raise Killed
        return replace(source, target)

    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", die)
    else:
        monkeypatch.setattr(Path, "replace", counting_replace)
    with pytest.raises(Killed):
        AtomicCheckpointIO().save_checkpoint(saved(checkpoint, 2), last)
    monkeypatch.undo()
    newest = next(path for path in (last, tmp_path / "previous.ckpt") if path.exists())
    found = read_checkpoint(newest)
    assert found is not None
    assert found["epoch"] == 1

    AtomicCheckpointIO().save_checkpoint(saved(checkpoint, 3), last)  # and the next one clears up
    assert {path.name for path in tmp_path.iterdir()} <= {"last.ckpt", "previous.ckpt"}


@pytest.mark.parametrize("size", [10, 10**6])
def test_a_full_disk_leaves_the_old_checkpoint(size: int, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    """A real one: what is written to the temporary file ends in the device that is always full."""
    last = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint, last)
    before = last.read_bytes()
    (tmp_path / "last.ckpt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"last\.ckpt") as caught:
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.zeros(size)}}, last)
    assert caught.value.errno == errno.ENOSPC
    assert last.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_cannot_be_saved_for_another_reason_says_why(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "hook": lambda: None}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_every_truncation_is_noticed(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    content = path.read_bytes()
    for length in range(0, len(content), 701):
        path.write_bytes(content[:length])
        assert read_checkpoint(path) is None
    path.write_bytes(content)
    found = read_checkpoint(path)
    assert found is not None
    assert torch.equal(found["state_dict"]["weight"], torch.arange(4096.0))


@pytest.mark.parametrize(
    "content", [b"this is no checkpoint" * 9, b"\x80\x02}q\x00.", b"PK\x03\x04" * 50, b"\n", b"\x00" * 999]
)
def test_noise_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    assert read_checkpoint(tmp_path / "last.ckpt") is None


def test_files_of_others_are_no_checkpoints(make_net: Any, tmp_path: Path) -> None:
    for content in (make_net().state_dict(), [1, 2], copy.deepcopy(make_net())):
        torch.save(content, tmp_path / "other.pt")
        assert read_checkpoint(tmp_path / "other.pt") is None


def test_random_criteria_need_no_state(make_module: Any, fit: Any, tmp_path: Path) -> None:
    """The random state of the run, not of the criterion, is what a checkpoint carries."""
    states = []
    for criterion_seed in (1, 2):
        torch.manual_seed(7)
        module = make_module()
        torch.manual_seed(7)
        callbacks = [PruningAtInit(Random(), density=0.5, seed=criterion_seed), KeepPruned(), SaveRandomState()]
        fit(module, callbacks).save_checkpoint(tmp_path / "last.ckpt")
        states.append(torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["SaveRandomState"]["torch"])
    assert torch.equal(*states)


def test_a_checkpoint_in_memory_is_handed_out_once_and_others_are_read(
    checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    content = saved(checkpoint, 2)
    storage = AtomicCheckpointIO(content)
    storage.save_checkpoint({"state_dict": {}}, tmp_path / "last.ckpt")
    assert storage.load_checkpoint(tmp_path / "last.ckpt") == {"state_dict": {}}
    assert storage.load_checkpoint(IN_MEMORY) is content
    with pytest.raises(RuntimeError, match="taken already"):
        storage.load_checkpoint(IN_MEMORY)
