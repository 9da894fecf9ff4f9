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
    """A bar over the rounds of pruning; a line at start and end where the output is no terminal.

    prefix: what stands before each of them, "level 2  " in a run with several levels.
    """

    def __init__(self, console: Console | None = None, prefix: str = "") -> None:
        self.console = console or Console()
        self.prefix = prefix
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
            TextColumn(f"{self.prefix}pruning"),
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
        self.console.print(f"{self.prefix}{line}", highlight=False, markup=False, soft_wrap=True)


class EpochLines(Callback):
    """One line per epoch on the standard output, for logs and pipes, where a bar would be noise.

    epoch 3/160  lr 0.1  train_loss 1.2041  train_accuracy 0.5625  val_loss ...  val_accuracy ...  12.3 s

    prefix: what stands before it, "level 2  " in a run with several levels. The seconds of an epoch in whose middle
    the training was taken up are those since then.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._validated = False
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_epoch()  # Lightning does not announce an epoch that is taken up in its middle

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_epoch()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = epoch_metrics(trainer, validated=self._validated)
        if not trainer.is_global_zero:
            return
        of_epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        parts = [f"{self.prefix}epoch {trainer.current_epoch + 1}{of_epochs}"]
        parts += [f"{name} {value:.6g}" if name == "lr" else f"{name} {value:.4f}" for name, value in values.items()]
        parts += [f"{time.perf_counter() - self._started:.1f} s"]
        print("  ".join(parts), flush=True)

    def _begin_epoch(self) -> None:
        self._validated = False
        self._started = time.perf_counter()
