"""Signals in a training that then goes on: nothing tells it from one that was never stopped."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.connectors.signal_connector import _HandlersCompose
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from prunelab.data.augment import Normalisation, RandomCropFlip
from prunelab.data.loader import TensorLoader
from prunelab.pruning.criteria import snip
from prunelab.report.metrics_csv import MetricsCsv
from prunelab.training import KeepPruned, PruningAtInit
from prunelab.training.interruption import SIGNALS, Interrupted, KeepSigterm, StopOnSignal, exit_code_on_signals
from prunelab.training.resume import AtomicCheckpointIO, CarryEpochMetrics, SaveRandomState, read_checkpoint

NUM_BATCHES, NUM_EPOCHS = 5, 3


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, Any]]:
    """Those that Python starts with, whatever the tests were started from; all of them are put back by every test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    plain = {number: signal.getsignal(number) for number in SIGNALS}
    yield plain
    left = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert left == plain


class Send(Callback):
    """Send the signals as the batch begins, counted over all epochs; without one, as soon as validation begins."""

    def __init__(self, *numbers: signal.Signals, batch: int | None = None) -> None:
        self.numbers, self.batch = numbers, batch
        self.num_batches = 0

    def on_train_batch_start(self, *_: Any) -> None:
        if self.num_batches == self.batch:
            self.send()
        self.num_batches += 1

    def on_validation_start(self, *_: Any) -> None:
        if self.batch is None:
            self.send()

    def send(self) -> None:
        for number in self.numbers:
            signal.raise_signal(number)


class LogSteps(Callback):
    """Draw from all generators, and log in every way that a user's callback may."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        pl_module.log("draw", random.random() + float(np.random.rand()), on_step=True, on_epoch=False)
        if batch_idx % 2:
            pl_module.log("every_second", 0.1 * batch_idx, on_step=False, on_epoch=True, reduce_fx="sum")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        pl_module.log("loss", outputs["loss"], on_step=True, on_epoch=True)


class Data(LightningDataModule):
    """5 batches, the last one smaller, shuffled and augmented as the project's data modules do."""

    def __init__(self, images: Any) -> None:
        super().__init__()
        self.images = images

    def train_dataloader(self) -> TensorLoader:
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randint(256, (48, 1, 6, 6), dtype=torch.uint8, generator=generator)
        labels, indices = torch.arange(48) % 3, torch.arange(48)
        normalise = Normalisation.of(pictures, indices)
        augment = RandomCropFlip(1, True, seed=5)
        return TensorLoader(pictures, labels, indices, normalise, batch_size=10, seed=5, augment=augment)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.images, batch_size=16)


def cosine(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "steps": ({"lr_scheduler": cosine, "lr_interval": "step"}, {}),
    "epochs, accumulation": ({"lr_scheduler": cosine}, {"accumulate_grad_batches": 2}),
    "validation inside epochs": ({}, {"val_check_interval": 2}),
}


class Training:
    """One training in `directory`; called again it goes on from its last checkpoint, with all objects fresh."""

    def __init__(self, directory: Path, setting: str, make_net: Any, make_module: Any, images: Any, fit: Any) -> None:
        self.path, self.setting = directory, setting
        self.make_net, self.make_module, self.images, self.fit = make_net, make_module, images, fit
        self.num_calls = 0

    def __call__(self, *extra: Callback) -> Trainer:
        self.num_calls += 1
        of_module, of_trainer = SETTINGS[self.setting]
        for events in self.path.glob("events.out.tfevents.*.*"):  # within one second names do not tell their order
            events.rename(self.path / f"events.out.tfevents.{self.num_calls:03d}")
        last = self.path / "last.ckpt"
        checkpoint = read_checkpoint(last) if last.exists() else None
        seed = self.num_calls  # nothing of the former call is left but its checkpoint
        module = self.make_module(self.make_net(dropout=0.5, seed=seed), **of_module)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        files: dict[str, Any] = {"dirpath": self.path, "enable_version_counter": False}
        callbacks = [
            PruningAtInit(snip, density=0.2, batches=[self.images[:16]], seed=1),
            KeepPruned(),
            SaveRandomState(),
            CarryEpochMetrics(),
            MetricsCsv(self.path / "metrics.csv"),
            LogSteps(),
            *extra,
            StopOnSignal(last),
            ModelCheckpoint(filename="best", monitor="val_loss", save_on_train_epoch_end=True, **files),
            ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **files),
        ]
        purge = checkpoint["global_step"] if checkpoint else None
        return self.fit(
            module,
            callbacks,
            data=Data(self.images),
            ckpt_path=last if checkpoint else None,
            max_epochs=NUM_EPOCHS,
            logger=TensorBoardLogger(self.path, name="", version="", purge_step=purge),
            log_every_n_steps=1,
            enable_checkpointing=True,
            plugins=[AtomicCheckpointIO()],
            **of_trainer,
        )

    def result(self) -> dict[str, Any]:
        """All that a training leaves, but for times and places."""
        found: dict[str, Any] = {"metrics": (self.path / "metrics.csv").read_bytes()}
        for name in ("last", "best"):
            content = read_checkpoint(self.path / f"{name}.ckpt")
            assert content is not None
            states = content["callbacks"]
            found[name] = flat(
                [
                    *(content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch")),
                    *(
                        content["global_step"],
                        content["loops"]["fit_loop"]["epoch_progress"],
                        "epoch_metrics" in content,
                    ),
                    states["SaveRandomState"],
                    *(state["best_model_score"] for key, state in states.items() if key.startswith("ModelCheckpoint")),
                ]
            )
        events = EventAccumulator(str(self.path), size_guidance={"scalars": 0}).Reload()
        tags = events.Tags()["scalars"]
        found["events"] = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
        return found


def flat(value: Any) -> list[Any]:
    """Plain numbers of a nested state, for comparison."""
    if isinstance(value, torch.Tensor):
        return value.flatten().tolist()
    if isinstance(value, dict):
        return [number for key in value for number in (key, *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [number for part in value for number in flat(part)]
    return [value]


@pytest.fixture
def make_training(make_net: Any, make_module: Any, images: Any, fit: Any, tmp_path: Path) -> Any:
    return lambda name, setting: Training(tmp_path / name, setting, make_net, make_module, images, fit)


@pytest.mark.parametrize("setting", SETTINGS)
def test_stopped_at_every_batch_it_ends_as_if_it_never_was(setting: str, make_training: Any) -> None:
    """Weights, optimizer, schedule, random state, rows, events: bit for bit."""
    whole = make_training("whole", setting)
    whole()
    expected = whole.result()
    assert {"draw", "loss_step", "loss_epoch", "train_loss", "lr", "every_second"} <= expected["events"].keys()
    inside = 0
    batches = range(NUM_BATCHES * NUM_EPOCHS) if setting == "steps" else range(4, 10)
    for batch in batches:
        training = make_training(f"stopped_at_{batch}", setting)
        with pytest.raises(Interrupted):
            training(Send(signal.SIGTERM, batch=batch))
        stopped = read_checkpoint(training.path / "last.ckpt")
        assert stopped is not None
        inside += "epoch_metrics" in stopped
        training()
        for part, value in training.result().items():
            assert value == expected[part], (batch, part)
    # not the last batches of an epoch, nor, with validation after two, a signal in the fourth
    assert inside == {"steps": 12, "epochs, accumulation": 4, "validation inside epochs": 3}[setting]


@pytest.mark.parametrize("num_batches", [1, 2])
def test_stopped_again_and_again(num_batches: int, make_training: Any) -> None:
    """After that many batches, several times in an epoch, until it is done."""
    whole, stopped = make_training("whole", "steps"), make_training("stopped", "steps")
    whole()
    for _ in range(NUM_BATCHES * NUM_EPOCHS // num_batches):
        with pytest.raises(Interrupted):
            stopped(Send(signal.SIGINT, batch=num_batches - 1))
    stopped()
    assert stopped.result() == whole.result()


class SaveAt(Callback):
    """Save at the end of a batch, counted over all epochs, and go on."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("setting", "batch"),
    [
        ("steps", 4),
        ("steps", 7),
        ("epochs, accumulation", 8),
        ("epochs, accumulation", 9),
        ("validation inside epochs", 7),
    ],
)
def test_gone_back_to_any_batch(setting: str, batch: int, make_training: Any) -> None:
    """To the last one of an epoch too: the epochs that follow are trained, validated and logged as they were."""
    whole, again = make_training("whole", setting), make_training("again", setting)
    again.path.mkdir()
    whole(SaveAt(batch, again.path / "last.ckpt"))
    again()
    num_rows = NUM_EPOCHS - (batch + 1) // NUM_BATCHES
    rows = [(training.path / "metrics.csv").read_text().splitlines()[-num_rows:] for training in (again, whole)]
    assert rows[0] == rows[1]
    one, other = (read_checkpoint(training.path / "last.ckpt") for training in (again, whole))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert flat(one[key]) == flat(other[key]), key
    assert flat(one["callbacks"]["SaveRandomState"]) == flat(other["callbacks"]["SaveRandomState"])
    events, expected = again.result()["events"], whole.result()["events"]
    first_epoch = (batch + 1) // NUM_BATCHES
    for tag in ("lr", "train_loss", "val_loss", "loss_epoch", "every_second"):
        assert events[tag] == expected[tag][-len(events[tag]) :]
        assert len(events[tag]) >= NUM_EPOCHS - first_epoch


def test_with_an_averaged_copy(make_training: Any) -> None:
    whole, stopped = make_training("whole", "steps"), make_training("stopped", "steps")
    whole(EMAWeightAveraging(decay=0.9))
    with pytest.raises(Interrupted):
        stopped(EMAWeightAveraging(decay=0.9), Send(signal.SIGTERM, batch=6))
    stopped(EMAWeightAveraging(decay=0.9))
    assert stopped.result() == whole.result()


@pytest.mark.parametrize("number", SIGNALS)
def test_exit_code_and_one_line(number: signal.Signals, make_training: Any, capsys: pytest.CaptureFixture[str]) -> None:
    training = make_training("stopped", "steps")
    with pytest.raises(SystemExit) as leaving:
        training(Send(number, batch=6))
    assert leaving.value.code == 128 + number
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "stopped" in line]
    assert f"stopped by {number.name} in epoch 2 after step 7, saved {training.path / 'last.ckpt'}: " in line
    assert sorted(path.name for path in training.path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    before = read_checkpoint(training.path / "previous.ckpt")
    assert before is not None
    assert (before["global_step"], "epoch_metrics" in before) == (5, False)


@pytest.mark.parametrize(
    ("sender", "line", "num_epochs"),
    [
        (Send(signal.SIGTERM, batch=4), "stopped by SIGTERM after epoch 1: ", 1),
        (Send(signal.SIGTERM), "stopped by SIGTERM after epoch 1: ", 1),
        (Send(signal.SIGTERM, batch=14), "stopped by SIGTERM after the training: ", 3),
    ],
)
def test_an_epoch_that_ends_is_ended(
    sender: Send, line: str, num_epochs: int, make_training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its validation, its row and its checkpoint."""
    training = make_training("stopped", "steps")
    with pytest.raises(Interrupted):
        training(sender)
    assert line in capsys.readouterr().out
    rows = (training.path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + num_epochs
    assert all(rows[-1].split(","))
    content = read_checkpoint(training.path / "last.ckpt")
    assert content is not None
    assert content["global_step"] == NUM_BATCHES * num_epochs


def test_the_step_of_accumulated_gradients_is_completed(make_training: Any) -> None:
    training = make_training("stopped", "epochs, accumulation")
    with pytest.raises(Interrupted):
        training(Send(signal.SIGTERM, batch=NUM_BATCHES))
    content = read_checkpoint(training.path / "last.ckpt")
    assert content is not None
    assert content["global_step"] == 3 + 1  # batches of 2, 2, 1 in the first epoch
    assert content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 2


def test_a_second_signal_leaves_at_once(make_training: Any, capsys: pytest.CaptureFixture[str]) -> None:
    training = make_training("stopped", "steps")
    with pytest.raises(Interrupted) as leaving:
        training(Send(signal.SIGINT, signal.SIGTERM, batch=6))
    assert leaving.value.code == 128 + signal.SIGTERM
    content = read_checkpoint(training.path / "last.ckpt")
    assert content is not None
    assert content["global_step"] == 5
    assert "stopped" not in capsys.readouterr().out


def test_torchrun_sends_signals_again(
    make_training: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    with pytest.raises(Interrupted):
        make_training("stopped", "steps")(Send(signal.SIGTERM, signal.SIGTERM, batch=6))
    assert "in epoch 2 after step 7, saved" in capsys.readouterr().out


def test_torchrun_sends_signals_again_while_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    done = []

    def stopped() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("cleaned up")

    with pytest.raises(Interrupted), exit_code_on_signals():
        stopped()
    assert done == ["cleaned up"]


def test_one_that_the_first_has_started_sends_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("PRUNELAB_FIRST_PROCESS", "17")
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("os.kill", lambda *process_and_signal: sent.append(process_and_signal))
    with exit_code_on_signals():
        signal.raise_signal(signal.SIGTERM)
    assert sent == [(17, signal.SIGTERM)]


def test_lightnings_handler_of_sigterm_is_kept_out(make_module: Any, fit: Any, handlers: Any) -> None:
    found = []

    class Look(Callback):
        def on_train_start(self, *_: Any) -> None:
            found.append(signal.getsignal(signal.SIGTERM))

    fit(make_module(), [Look()])
    fit(make_module(), [Look(), KeepSigterm()])
    assert isinstance(found[0], _HandlersCompose)
    assert found[1] == handlers[signal.SIGTERM]


def test_a_loader_without_state_loses_its_epoch(
    make_module: Any, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(Interrupted):
        fit(make_module(), [Send(signal.SIGTERM, batch=4), StopOnSignal(path)], max_epochs=3)
    assert "in epoch 2, nothing saved: the same command starts this epoch again" in capsys.readouterr().out
    assert not path.exists()


def test_without_a_signal_nothing_happens(make_module: Any, fit: Any, tmp_path: Path, handlers: Any) -> None:
    fit(make_module(), [StopOnSignal(tmp_path / "last.ckpt")], max_epochs=2)
    assert not (tmp_path / "last.ckpt").exists()
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_errors_put_the_handlers_back(make_module: Any, fit: Any, tmp_path: Path, handlers: Any) -> None:
    class Fail(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(make_module(), [Fail(), StopOnSignal(tmp_path / "last.ckpt")])
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_lightnings_requeueing_keeps_its_signal(make_module: Any, fit: Any, tmp_path: Path) -> None:
    requeued = []
    requeue = _HandlersCompose([lambda number, frame: requeued.append(number)])
    former = signal.signal(signal.SIGUSR1, requeue)
    try:
        fit(make_module(), [Send(signal.SIGUSR1, batch=1), StopOnSignal(tmp_path / "last.ckpt")])
        assert requeued == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is requeue
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_outside_of_the_main_thread_signals_are_left_alone(make_module: Any, fit: Any, tmp_path: Path) -> None:
    steps = []

    def train() -> None:
        with exit_code_on_signals():
            steps.append(fit(make_module(), [StopOnSignal(tmp_path / "last.ckpt")]).global_step)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert steps == [3]


@pytest.mark.parametrize("number", SIGNALS)
def test_exit_code_outside_of_training(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as leaving, exit_code_on_signals():
        signal.raise_signal(number)
    assert leaving.value.code == 128 + number


def test_signals_that_are_ignored_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with exit_code_on_signals():
            signal.raise_signal(signal.SIGINT)
    finally:
        assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN


def test_under_slurm_its_signal_is_left_to_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "some_job")
    with exit_code_on_signals():
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
