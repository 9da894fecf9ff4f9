"""What a person sees while a run goes on: a bar over the scoring rounds, a line per epoch."""

from __future__ import annotations

import time

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from prunelab.pruning import Masks
from prunelab.report.epoch_metrics import epoch_metrics


class PruningProgress(Callback):
    """A bar over the rounds of pruning; a line at start and end where the output is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def on_pruning_round(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        index: int,
        num_rounds: int,
        density: float,
        scores: dict[str, Tensor],
        masks: Masks,
    ) -> None:
        if not trainer.is_global_zero:
            return
        if index == 0:
            self._start(num_rounds)
        if self._bar is not None:
            self._bar.update(self._task, completed=index + 1, density=f"{masks.density:.4g}")
        if index == num_rounds - 1:
            self._stop()
            kept = f"{masks.num_kept:,} of {masks.num_weights:,} weights kept"
            self._print(f"pruned: {kept}, density {masks.density:.6g}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _start(self, num_rounds: int) -> None:
        if not self.console.is_terminal:
            self._print(f"pruning: {num_rounds} {'round' if num_rounds == 1 else 'rounds'}")
            return
        columns = (
            TextColumn("pruning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("density {task.fields[density]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task("pruning", total=num_rounds, density="1")
        self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class EpochLines(Callback):
    """One line per epoch on the standard output, for logs and pipes, where a bar would be noise.

    epoch 3/160  lr 0.1  train_loss 1.2041  train_accuracy 0.5625  val_loss ...  val_accuracy ...  12.3 s
    """

    def __init__(self) -> None:
        self._validated = False
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = False
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = epoch_metrics(trainer, validated=self._validated)
        if not trainer.is_global_zero:
            return
        of_epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        parts = [f"epoch {trainer.current_epoch + 1}{of_epochs}"]
        parts += [f"{name} {value:.6g}" if name == "lr" else f"{name} {value:.4f}" for name, value in values.items()]
        parts += [f"{time.perf_counter() - self._started:.1f} s"]
        print("  ".join(parts), flush=True)
