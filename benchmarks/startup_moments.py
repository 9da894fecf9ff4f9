"""Callbacks for startup.py: when a run prunes, ends its epochs, begins to train."""

from __future__ import annotations

import os
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class EndAtFirstRound(Callback):
    """The first scoring round ends the process: how long that took is seen from outside."""

    def on_pruning_round(self, *_: Any) -> None:
        os._exit(0)


class PrintGaps(Callback):
    """Print `gap SECONDS PROCESSOR_SECONDS` at the first step of a level: from the end of the last epoch before it."""

    epoch_end: tuple[float, float] | None = None  # of the class: each level has callbacks of its own

    def __init__(self) -> None:
        self._is_first = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._is_first and PrintGaps.epoch_end is not None:
            wall, processor = PrintGaps.epoch_end
            print(f"gap {time.perf_counter() - wall} {time.process_time() - processor}", flush=True)
        self._is_first = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        PrintGaps.epoch_end = time.perf_counter(), time.process_time()
