"""metrics.csv: one row per epoch, on the disk as soon as the epoch is over."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from prunelab.report.epoch_metrics import METRICS, epoch_metrics

COLUMNS = ("epoch", "step", *METRICS)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a metrics.csv, oldest first; none if there is no file."""
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]  # a kill can cut the last one


class MetricsCsv(Callback):
    """Append one row to the file at `path` after every epoch.

    Its columns: epoch, counted from 1, optimizer step, learning rate, losses and accuracies (fractions). What was not
    measured in an epoch is an empty cell. A resumed training first drops the rows of the epochs that it will
    run again, so that the file equals an uninterrupted run's; nothing in it depends on the clock.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        return {"validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validated = state_dict["validated"]  # a run that resumes inside an epoch may have validated in it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._write([row for row in read_metrics(self.path) if int(row["epoch"]) <= trainer.current_epoch])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = epoch_metrics(trainer, validated=self._validated)
        if not trainer.is_global_zero:
            return
        row = {"epoch": str(trainer.current_epoch + 1), "step": str(trainer.global_step)}
        row |= {name: f"{value:.8g}" for name, value in values.items()}
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS, restval="").writerow(row)

    def _write(self, rows: list[dict[str, str]]) -> None:
        beside = self.path.with_name(self.path.name + ".tmp")
        with open(beside, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(beside, self.path)
