from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint

from prunelab.report.metrics_csv import MetricsCsv


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_epoch_with_empty_cells_for_what_was_not_measured(fit, tmp_path):
    path = tmp_path / "metrics.csv"
    trainer = fit([MetricsCsv(path)], max_epochs=3, check_val_every_n_epoch=2)
    rows = read(path)
    assert list(rows[0]) == ["epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["3", "6", "9"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.1, 0.05, 0.025])
    assert [bool(row["val_accuracy"]) for row in rows] == [False, True, False]
    assert {row["train_accuracy"] for row in rows} == {""}
    assert float(rows[-1]["train_loss"]) == pytest.approx(float(trainer.callback_metrics["train_loss"]), rel=1e-6)


def test_a_row_is_on_the_disk_before_the_next_epoch(fit, tmp_path):
    path, seen = tmp_path / "metrics.csv", []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(len(read(path)))

    fit([MetricsCsv(path), Look()], max_epochs=3)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("tail", ["", "2,9,0.0", "3,9,0.025,1.0,,1.0,0.3\r\n4,12,0.01,1.0,,1.0,0.3\r\n"])
def test_resumed_equals_uninterrupted(fit, tmp_path, tail):
    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    fit([MetricsCsv(whole)], max_epochs=4)
    save = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fit([MetricsCsv(resumed), save], max_epochs=2, enable_checkpointing=True)
    with open(resumed, "a", newline="") as file:
        file.write(tail)  # what a killed process may have left of the epochs after the checkpoint
    fit([MetricsCsv(resumed)], max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_from_the_start_begins_a_new_file(fit, tmp_path):
    path = tmp_path / "metrics.csv"
    fit([MetricsCsv(path)], max_epochs=3)
    fit([MetricsCsv(path)], max_epochs=1)
    assert len(read(path)) == 1


def test_an_epoch_taken_up_in_its_middle_has_its_row(fit, tmp_path):
    path = tmp_path / "metrics.csv"
    save = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=4, save_top_k=-1)
    fit([MetricsCsv(path), save], enable_checkpointing=True)
    first = read(path)[0]
    fit([MetricsCsv(path)], max_epochs=3, check_val_every_n_epoch=3, ckpt_path=tmp_path / "middle.ckpt")
    rows = read(path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[0] == first
    assert [bool(row["val_accuracy"]) for row in rows] == [True, False, True]
