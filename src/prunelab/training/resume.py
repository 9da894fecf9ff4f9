"""What a run needs to be resumed bit for bit: checkpoints that are whole or not there, the random state, and what an
epoch has logged so far."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from prunelab.training.ranks import of_ranks

IN_MEMORY = Path("in memory")  # instead of a checkpoint's path: what AtomicCheckpointIO was given


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush to the disk, rename: whenever the process dies, one whole file is there.

    A `last.ckpt` that is replaced stays as `previous.ckpt`, to fall back to if the disk damages the new one.
    start: a checkpoint that `fit(ckpt_path=IN_MEMORY)` begins with. It is let go of then: the optimizer may go on in
    its tensors.
    Raises: OSError with the path, should the disk be full or the like.
    """

    def __init__(self, start: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._start = start

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        if path != IN_MEMORY:
            return super().load_checkpoint(path, *arguments, **options)
        if self._start is None:
            raise RuntimeError("there is no checkpoint in memory, or it was taken already")
        start, self._start = self._start, None
        return start

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.tmp")  # one name: what a killed process left is overwritten
        try:
            _write(checkpoint, temporary)
            if target.name == "last.ckpt" and target.exists():
                target.replace(target.with_name("previous.ckpt"))
            temporary.replace(target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        finally:
            temporary.unlink(missing_ok=True)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides the disk's error behind its own
                raise error.__context__ from error
            raise
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint in `path`, on the CPU; None if it is damaged or something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # reading noise fails in any way: OSError, RuntimeError, IndexError, UnicodeDecodeError, ...
        return None
    return content if isinstance(content, dict) and "state_dict" in content else None


class SaveRandomState(Callback):
    """Carry the state of all random generators in the checkpoint: dropout and the like go on where they were.

    Of several processes each goes on with its own. With another number of processes than before they take the states in
    turn, as all begin with the same one; these are other draws than those of a training that was not stopped.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._of_ranks: list[dict[str, Any]] = []
        self._device = torch.device("cpu")
        self._at_epoch_end = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device

    def state_dict(self) -> dict[str, Any]:
        version, keys, gauss = random.getstate()
        kind, numbers, *position = np.random.get_state(legacy=True)
        return {
            "torch": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else [],
            "python": [version, list(keys), gauss],
            "numpy": [kind, numbers.tolist(), *position],  # type: ignore[union-attr]
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.world_size > 1:
            checkpoint["random_state_of_ranks"] = of_ranks(trainer, self.state_dict())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._of_ranks = checkpoint.get("random_state_of_ranks", [])
        if "loops" in checkpoint:  # otherwise there is nothing to resume, as Lightning says itself
            epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
            self._at_epoch_end = 0 < epoch["started"] == epoch["processed"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._at_epoch_end:  # before the loader's iterator is made, which may draw, as it did after the epoch's end
            self._restore(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        if self._of_ranks:
            state = self._of_ranks[trainer.global_rank % len(self._of_ranks)]
        torch.set_rng_state(state["torch"])
        if state["cuda"] and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"][0], self._device)
        version, keys, gauss = state["python"]
        random.setstate((version, tuple(keys), gauss))
        kind, numbers, *position = state["numpy"]
        np.random.set_state((kind, np.array(numbers, dtype=np.uint32), *position))


class SettleBuckets(Callback):
    """Sum gradients over more than two processes in one order of additions, from the first step of every process on.

    In which order the summands of an element are added depends on its place in DDP's buckets. DDP fills them anew after
    the first backward pass, in the order in which the gradients came, so the first step after a resume would be rounded
    otherwise than where nothing was stopped. A backward pass of zeros, last parameter first, settles it beforehand.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        if trainer.world_size <= 2 or not isinstance(strategy, DDPStrategy):
            return
        if strategy._ddp_kwargs.get("static_graph"):  # the graph of zeros would be taken for that of all steps
            return

        def zero(*_: Any) -> Tensor:
            return torch.stack([(own * 0).sum() for own in trained]).sum()

        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        assert strategy.model is not None
        forward, pl_module.forward = pl_module.forward, zero  # type: ignore[method-assign]
        try:
            strategy.model().backward()
        finally:
            pl_module.forward = forward  # type: ignore[method-assign]
        for parameter in trained:
            parameter.grad = None


class CarryEpochMetrics(Callback):
    """Carry what an epoch has logged so far in the checkpoints from inside it: its means go on where they were.

    Lightning saves no running means, and calls no on_train_epoch_start when it resumes inside an epoch. What was logged
    there (the learning rate) is logged anew at the end of the epoch; to everything else the saved sums are added once
    its first new summand is there, in which order makes no difference to a sum of two. Sums and means are carried; a
    maximum, a minimum or a torchmetrics.Metric starts anew. With another number of processes than before, each gets an
    equal share of the sums.
    The metrics that callbacks see, such as the last validation's, are carried too. Checkpoints from the end of an epoch
    hold nothing of this.

    Goes before the callbacks that save, or read the metrics of an epoch.
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] = []
        self._callback_metrics: dict[str, Tensor] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._add_pending(trainer)
        if _inside_epoch(trainer):
            seen = trainer._logger_connector._callback_metrics
            checkpoint["epoch_metrics"] = {
                "of_ranks": of_ranks(trainer, _running_sums(trainer) + self._pending),
                "callback_metrics": {name: value.detach().cpu() for name, value in seen.items()},
            }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if saved := checkpoint.get("epoch_metrics"):
            self._pending = _own_share(saved["of_ranks"], trainer)
            self._callback_metrics = saved["callback_metrics"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seen = {name: value.to(pl_module.device) for name, value in self._callback_metrics.items()}
        trainer._logger_connector._callback_metrics.update(seen)
        self._callback_metrics = {}
        loop = trainer.fit_loop
        if loop.restarted_mid_epoch and not _inside_epoch(trainer):
            # saved at the last batch of its epoch: Lightning begins the next one, but would not call its
            # on_train_epoch_start, as if it were inside it
            loop.reset_restart_stage()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pending = []  # of an epoch whose last batch was the one that was saved

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._add_pending(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add_pending(trainer)
        results = trainer.fit_loop.epoch_loop._results
        zero = torch.zeros((), device=pl_module.device)
        for saved in self._pending:
            shown = {key: saved[key] for key in ("prog_bar", "logger", "reduce_fx", "sync_dist")}
            # under a name of its own for its origin: the next epoch logs with options that are not all known here
            results.log("resumed", saved["name"], zero, batch_size=0, sync_dist_fn=trainer.strategy.reduce, **shown)
            _add(results[f"resumed.{saved['name']}"], saved)
        self._pending = []

    def _add_pending(self, trainer: Trainer) -> None:
        """As soon as the first new summand is there: it may come after this callback's turn."""
        results = trainer.fit_loop.epoch_loop._results
        waiting = []
        for saved in self._pending:
            metric = results.get(f"{saved['fx']}.{saved['name']}")
            if metric is None or metric.has_reset:
                waiting.append(saved)
            else:
                _add(metric, saved)
        self._pending = waiting


def _inside_epoch(trainer: Trainer) -> bool:
    epoch: Any = trainer.fit_loop.epoch_progress.current
    return epoch.processed < epoch.started


def _running_sums(trainer: Trainer) -> list[dict[str, Any]]:
    """Of everything that this epoch logged on this rank: where, what, how, and [sum] or [sum, number of samples]."""
    return [
        {
            "fx": metric.meta.fx,
            "name": metric.meta.name,
            "prog_bar": metric.meta.prog_bar,
            "logger": metric.meta.logger,
            "reduce_fx": metric.meta.reduce_fx.__name__,
            "sync_dist": metric.meta.sync.should,
            "sums": [getattr(metric, name).detach().cpu() for name in _sum_names(metric)],
        }
        for metric in trainer.fit_loop.epoch_loop._results.result_metrics
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset and _sum_names(metric)
    ]


def _sum_names(metric: Any) -> tuple[str, ...]:
    if metric.meta.is_mean_reduction:
        return "value", "cumulated_batch_size"
    return ("value",) if metric.meta.is_sum_reduction else ()


def _add(metric: Any, saved: dict[str, Any]) -> None:
    for name, addend in zip(_sum_names(metric), saved["sums"], strict=True):
        current = getattr(metric, name)
        setattr(metric, name, current + addend.to(current.device))


def _own_share(saved_of_ranks: list[list[dict[str, Any]]], trainer: Trainer) -> list[dict[str, Any]]:
    if len(saved_of_ranks) == trainer.world_size:
        return saved_of_ranks[trainer.global_rank]
    everything = [saved for of_rank in saved_of_ranks for saved in of_rank]
    return [saved | {"sums": [part / trainer.world_size for part in saved["sums"]]} for saved in everything]
