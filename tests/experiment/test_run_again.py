"""The same command again, checkpoints by name, and runs that are only measured."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping

from prunelab.data import ImageDataModule
from prunelab.experiment import run as run_module
from prunelab.experiment.errors import RunError
from prunelab.experiment.run import evaluate
from prunelab.models import mlp
from prunelab.pruning import Masks
from prunelab.training import Classifier

from .run_results import (
    LESS,
    CountSteps,
    Interrupted,
    checkpoint_of,
    events_of,
    interrupt,
    record_of,
    rows_of,
    same_result,
)


def test_a_finished_run_is_not_trained_again(experiment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    level = experiment()
    table = capsys.readouterr().out.partition("\n\n")[2]
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in level.path.parent.rglob("*") if path.is_file()
    }
    num_built = experiment.num_built
    experiment()
    with pytest.raises(RunError, match="has already trained 3 epochs, more than the 2 asked for"):
        experiment(**{"trainer.max_epochs": 2})
    experiment(**{"pruning.density": None, "pruning.compression_ratio": 10})
    printed = capsys.readouterr().out
    assert experiment.num_built == num_built
    assert printed.count("finished earlier, nothing to do (--trainer.max_epochs above 3 trains on)") == 2
    assert table.strip() in printed
    assert printed.split()[-1] == str(level.path.parent)
    after = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in level.path.parent.rglob("*") if path.is_file()
    }
    assert after == before


@pytest.mark.parametrize("changes", [{}, {"trainer.max_steps": 100}])
def test_more_epochs_train_on_as_if_asked_at_once(changes: dict[str, Any], experiment: Any, tmp_path: Path) -> None:
    at_once = type(experiment)(tmp_path / "at once")
    steps = CountSteps()
    experiment(**LESS, **changes)
    experiment.callbacks = [steps]
    level = experiment(**changes)
    assert steps.count == 6
    same_result(level, at_once(**changes))
    assert record_of(level)["seconds_training"] > 0
    experiment(**changes)  # and now it is finished
    assert steps.count == 6


def test_steps_can_be_limited_and_resumed(experiment: Any, tmp_path: Path) -> None:
    """Lightning's own limit would resume with an epoch without batches."""
    changes = {"trainer.max_epochs": None, "trainer.max_steps": 16}
    whole = type(experiment)(tmp_path / "whole")(**changes)
    assert [row["step"] for row in rows_of(whole)] == ["6", "12", "16"]
    interrupt(experiment, 1, **changes)
    steps = CountSteps()
    experiment.callbacks = [steps]
    level = experiment(**changes)
    experiment(**changes)
    assert steps.count == 10
    same_result(level, whole)
    level.record.unlink()  # as if it had died before writing it
    experiment(**changes)
    assert steps.count == 10
    same_result(level, whole)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_interrupted_run_goes_on_bit_for_bit(
    epoch: int, experiment: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = type(experiment)(tmp_path / "whole")()
    level = interrupt(experiment, epoch)
    assert not level.record.exists()
    capsys.readouterr()
    steps = CountSteps()
    experiment.callbacks = [steps]
    torch.manual_seed(99)
    experiment()
    assert steps.count == 6 * (3 - epoch)
    same_result(level, whole)
    assert ("resuming from" in capsys.readouterr().out) == (epoch > 0)
    for name in ("train_loss", "val_accuracy", "lr"):
        logged = [event.step for event in events_of(level).Scalars(name)]
        assert logged == [5, 11, 17]  # nothing twice


def test_a_run_that_died_before_its_record_only_writes_that(
    experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = type(experiment)(tmp_path / "whole")()

    def die(*_: Any) -> None:
        raise Interrupted

    monkeypatch.setattr(run_module, "write_record", die)
    with pytest.raises(Interrupted):
        experiment()
    monkeypatch.undo()
    steps = CountSteps()
    experiment.callbacks = [steps]
    level = experiment()
    assert steps.count == 0
    same_result(level, whole)
    assert record_of(level)["seconds_training"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_its_own_exit_code(number: signal.Signals, experiment: Any, tmp_path: Path) -> None:
    """0, which Lightning gives after SIGTERM, would tell a scheduler that the run is finished."""

    class Signal(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), number)

    whole = type(experiment)(tmp_path / "whole")()
    experiment.callbacks = [Signal()]
    handler = signal.getsignal(number)
    try:
        with pytest.raises(SystemExit) as caught:
            experiment()
    finally:
        signal.signal(number, handler)
    assert caught.value.code == 128 + number
    experiment.callbacks = []
    same_result(experiment(), whole)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])


def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    experiment: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = type(experiment)(tmp_path / "whole")()
    level = interrupt(experiment, 2)
    cut(level.last_checkpoint)
    capsys.readouterr()
    experiment()
    resuming = f"resuming from {level.previous_checkpoint}, epoch 1, step 6 ({level.last_checkpoint} is damaged)"
    assert resuming in capsys.readouterr().out
    same_result(level, whole)


def test_without_a_whole_checkpoint_it_says_so_and_deletes_nothing(experiment: Any) -> None:
    level = interrupt(experiment, 2)
    for path in (level.last_checkpoint, level.previous_checkpoint):
        cut(path)
    before = {path: path.read_bytes() for path in level.path.iterdir()}
    with pytest.raises(RunError, match=r"damaged or no checkpoint: .*last\.ckpt, .*previous\.ckpt") as caught:
        experiment()
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in level.path.iterdir()} == before


def test_a_damaged_record_is_named(experiment: Any) -> None:
    level = experiment(**LESS)
    level.record.write_text('{"name": ')
    with pytest.raises(RunError, match=r"record\.json is damaged .*: delete it to finish the run from its checkpoint"):
        experiment(**LESS)
    level.record.unlink()
    experiment(**LESS)
    assert record_of(level)["epochs"] == 2


def test_a_checkpoint_from_elsewhere_goes_on_here(experiment: Any, tmp_path: Path) -> None:
    elsewhere = type(experiment)(tmp_path / "elsewhere")
    interrupt(elsewhere, 2)
    given = elsewhere.level().last_checkpoint
    level = experiment(ckpt_path=str(given))
    assert Masks.load(level.masks).digest() == record_of(level)["masks_digest"]
    assert len(rows_of(level)) == 1  # the epochs before were trained elsewhere
    whole = type(experiment)(tmp_path / "whole")()
    first, second = checkpoint_of(level.last_checkpoint), checkpoint_of(whole.last_checkpoint)
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())


def test_a_checkpoint_of_another_configuration_is_refused(experiment: Any) -> None:
    given = experiment(**LESS).last_checkpoint
    changes = {"pruning.density": 0.3, "model.optimizer.init_args.lr": 0.5}
    message = r"of another configuration, they differ in model\.optimizer\.init_args\.lr, pruning\.density$"
    with pytest.raises(RunError, match=message):
        experiment(ckpt_path=str(given), **changes)


def test_a_checkpoint_of_others_is_refused(experiment: Any, tmp_path: Path) -> None:
    content = checkpoint_of(experiment(**LESS).last_checkpoint)
    torch.save({**content, "callbacks": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(RunError, match=r"foreign\.ckpt was not written by a run of prunelab .*weights_from"):
        experiment(ckpt_path=str(tmp_path / "foreign.ckpt"), seed_everything=5)
    torch.save(content["state_dict"], tmp_path / "weights.pt")
    with pytest.raises(RunError, match=r"damaged or no checkpoint: .*weights\.pt"):
        experiment(ckpt_path=str(tmp_path / "weights.pt"), seed_everything=5)


def test_the_last_checkpoint_can_be_measured_anew(experiment: Any, data: ImageDataModule) -> None:
    def fresh() -> Any:
        net = mlp(num_classes=3, in_channels=1, image_size=6, depth=2, width=8)
        return experiment.config()["trainer"], Classifier(net, torch.optim.SGD), data, None

    level = experiment()
    record = record_of(level)
    found = evaluate(level.path.parent, fresh)
    for name in ("val_accuracy", "val_loss", "test_accuracy", "test_loss"):
        assert found[name] == pytest.approx(record[name], rel=1e-6)
    for damage in (cut, Path.unlink):
        damage(level.last_checkpoint)
        with pytest.raises(RunError, match=r"last\.ckpt is missing or damaged"):
            evaluate(level.path.parent, fresh)


def interrupted_before_the_test(experiment: Any, **changes: Any) -> None:
    class Die(Callback):
        def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            raise Interrupted

    others = experiment.callbacks
    experiment.callbacks = [*others, Die()]
    with pytest.raises(Interrupted):
        experiment(**changes)
    experiment.callbacks = others


def test_a_training_that_was_stopped_early_stays_stopped(experiment: Any, tmp_path: Path) -> None:
    changes = {"trainer.max_epochs": 6}
    whole = type(experiment)(tmp_path / "whole")
    whole.callbacks = [EarlyStopping("val_accuracy", patience=1, min_delta=1.0)]
    expected = whole(**changes)
    assert record_of(expected)["epochs"] == 2
    experiment.callbacks = [EarlyStopping("val_accuracy", patience=1, min_delta=1.0)]
    interrupted_before_the_test(experiment, **changes)
    experiment.callbacks = [EarlyStopping("val_accuracy", patience=1, min_delta=1.0)]
    same_result(experiment(**changes), expected)


def test_networks_that_draw_at_random_are_measured_alike(experiment: Any, tmp_path: Path) -> None:
    changes = {"model.net": {"class_path": "supermask", "init_args": {}}, "pruning.density": 1.0}
    expected = type(experiment)(tmp_path / "whole")(**changes)
    interrupted_before_the_test(experiment, **changes)
    level = experiment(**changes)
    same_result(level, expected)
    assert 0 < record_of(level)["supermask_density"] < 1


def test_a_refused_fresh_run_puts_the_old_one_back(experiment: Any) -> None:
    level = experiment()
    before = record_of(level)
    with pytest.raises(RunError, match="optimizer, schedule or trainer"):
        experiment(fresh=True, **{"trainer.accelerator": "nonsense"})
    assert record_of(level) == before
    assert [path.name for path in experiment.directory.iterdir()] == [level.path.parent.name]
    experiment(fresh=True)
    assert sorted(path.name for path in experiment.directory.iterdir()) == [
        level.path.parent.name,
        f"{level.path.parent.name}.1",
    ]


def test_an_unfinished_run_of_the_same_name_is_mentioned(experiment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    level = interrupt(experiment, epoch=1)
    capsys.readouterr()
    experiment(**{"model.optimizer.init_args.lr": 0.1})
    name = level.path.parent.name
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"not the unfinished run {name}, which differs in model.optimizer.init_args.lr"


def test_epochs_without_a_limit(experiment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    unlimited = {"trainer.max_epochs": -1, "trainer.max_steps": 16}
    level = experiment(**unlimited)
    assert record_of(level)["steps"] == 16
    capsys.readouterr()
    experiment(**unlimited)
    assert "finished earlier, nothing to do\n" in capsys.readouterr().out
    level = experiment()
    assert record_of(level)["epochs"] == 3
    level = experiment(**{"trainer.max_epochs": -1, "trainer.max_time": "00:00:00:00"})
    assert record_of(level)["out_of_time"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer.max_epochs": -3}, r"trainer\.max_epochs: a number of epochs, or -1 for no limit, not -3"),
        ({"trainer.max_epochs": -3, "tickets.levels": 2}, "not -3"),
        ({"trainer.max_epochs": -1}, r"say how long to train: --trainer\.max_epochs or --trainer\.max_steps"),
        ({"trainer.max_epochs": None}, "say how long to train"),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_epochs_that_cannot_be(is_finished: bool, changes: dict[str, Any], message: str, experiment: Any) -> None:
    if is_finished:
        experiment(**{key: value for key, value in changes.items() if key != "trainer.max_epochs"})
    num_built = experiment.num_built
    with pytest.raises(RunError, match=message):
        experiment(**changes)
    assert experiment.num_built == num_built
