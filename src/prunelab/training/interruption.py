"""What a signal does to a run: it ends where the same command can take it up, and the exit code names the signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.utilities.types import _Stateful
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.connectors.signal_connector import _HandlersCompose, _SignalConnector

from prunelab.launcher import first_process, hand_to_the_first, under_torchrun

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

Handlers = dict[signal.Signals, Any]
_END = b"\0"  # the number of no signal
_SECONDS_TO_NOTICE = 2.0


class Interrupted(SystemExit):
    """The end of the process by the signal `number`: exit code 128 + number, as shells count."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class KeepSigterm(Callback):
    """Keep the handler of SIGTERM that is there when the Trainer begins.

    Lightning's own starts a collective wherever the signal comes: of several processes, one that gets the signal alone
    waits for the others for ever, or takes their gradients for its news.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        connector = trainer._signal_connector
        connector.register_signal_handlers = partial(_register_but_sigterm, connector)  # type: ignore[method-assign]


class StopOnSignal(KeepSigterm):
    """On SIGTERM, SIGINT or SIGUSR1 while training: save `path`, say so in a line, leave with `Interrupted`.

    path: where the same command looks for the checkpoint to go on from.
    The step that is being made is completed, gradient accumulation included. A batch that the end of its epoch or a
    validation follows is not the place to save, as Lightning would skip these on a resume: the training goes on to the
    next batch, or the epoch ends as always and the process leaves before the next one, or after training. Where the
    training loader cannot resume inside an epoch nothing is saved, and the epoch will be trained again. A second signal
    ends the process at once, and leaves the checkpoint that is there; not under torchrun, which sends on to all what
    they may have got themselves, and kills what has not ended after half a minute.
    Of several processes it is enough that one gets the signal. All leave together, the first with the exit code and the
    others with 0: a launcher that sees one of them fail would kill the first while it cleans up.
    SIGUSR1 is Lightning's where it requeues jobs of SLURM by it.

    Goes after the callbacks that do something at the end of a batch: what comes later is not in the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._received = 0  # the signal that came to this process, 0 for none
        self._saved_for = 0  # the signal that all processes have saved for
        self._former: Handlers = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = self._saved_for = 0
        requeues = isinstance(signal.getsignal(signal.SIGUSR1), _HandlersCompose)
        self._former = _install(self._take_note, SIGNALS[:2] if requeues else SIGNALS)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if number := self._agreed(trainer):
            where = f"after epoch {trainer.current_epoch}" if trainer.current_epoch else "before the first epoch"
            self._leave(trainer, number, f"{where}: the same command goes on from there")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._saved_for:  # not before: what the saved batch logs comes after its on_train_batch_end
            where = f"in epoch {trainer.current_epoch + 1} after step {trainer.global_step}"
            self._leave(trainer, self._saved_for, f"{where}, saved {self._path}: the same command goes on from there")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        number = self._agreed(trainer)
        if not number or _epoch_end_or_validation_follows(trainer):
            return
        if not _resumes_inside_epochs(trainer):
            epoch = trainer.current_epoch + 1
            self._leave(trainer, number, f"in epoch {epoch}, nothing saved: the same command starts this epoch again")
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            trainer.save_checkpoint(self._path)
            self._saved_for = number

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()  # first: a signal that came between would be lost
        if number := self._agreed(trainer):
            self._leave(trainer, number, "after the training: the same command does what is left")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received = number
        elif not under_torchrun():
            _leave_now(number)

    def _agreed(self, trainer: Trainer) -> int:
        """The signal that came to any of the processes; all of them have to ask."""
        if trainer.world_size == 1:
            return self._received
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))

    def _leave(self, trainer: Trainer, number: int, where: str) -> None:
        if not trainer.is_global_zero:
            raise SystemExit(0)
        print(f"stopped by {signal.Signals(number).name} {where}", flush=True)
        raise Interrupted(number)

    def _restore(self) -> None:
        _put_back(self._former)
        self._former = {}


@contextmanager
def exit_code_on_signals() -> Iterator[None]:
    """Outside of training: SIGTERM, SIGINT and SIGUSR1 end the process at once with `Interrupted`.

    A process that the first of its run has started sends the signal on to the first, whose exit code is that of the
    run, and ends with it. So does a process that waits for others in torch's own code, where no handler has its turn:
    up to half an hour while they connect.
    Does nothing in a thread other than the main one, which alone can handle signals, and leaves SIGUSR1 to Lightning
    under SLURM.
    """
    leaves = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal leaves
        again, leaves = leaves, True
        if not again or not under_torchrun():
            _leave_now(number)

    # under SLURM a handler that is there already would keep Lightning from installing the one that requeues
    former = _install(leave, SIGNALS[:2] if SLURMEnvironment.detect() else SIGNALS)
    try:
        with _watched(leave, lambda: leaves):
            yield
    finally:
        _put_back(former)


@contextmanager
def _watched(handler: Callable[[int, FrameType | None], None], noticed: Callable[[], bool]) -> Iterator[None]:
    """End the process by a signal that is for `handler` and that it has not `noticed` after a moment.

    Python calls handlers between two of its own instructions, and so never while the main thread waits in another
    language; but the number of the signal is in a pipe at once, which another thread reads.
    """

    def watch() -> None:
        while (number := os.read(reader, 1)) and number != _END:
            # one that comes while something else handles it, as in training, is not ours
            if signal.getsignal(number[0]) is handler:
                over.wait(_SECONDS_TO_NOTICE)
                if not (over.is_set() or noticed()) and signal.getsignal(number[0]) is handler:
                    _end_now(number[0])

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _forget_pipe_in_forks()
    over = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="watch-signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(former)
        os.write(writer, _END)  # closing it would not do: a process that was forked meanwhile holds it too
        watcher.join()
        os.close(writer)
        os.close(reader)


@cache
def _forget_pipe_in_forks() -> None:
    """Or a signal to a worker of a loader, which is a fork, would be in the pipe of its parent."""
    os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))


def _end_now(number: int) -> None:
    if first_process() is None:
        os._exit(128 + number)
    hand_to_the_first(number)


def _leave_now(number: int) -> None:
    """End the run, from whichever of its processes."""
    if first_process() is None:
        raise Interrupted(number)
    hand_to_the_first(number)


def _register_but_sigterm(connector: _SignalConnector) -> None:
    if threading.current_thread() is not threading.main_thread() or (ours := signal.getsignal(signal.SIGTERM)) is None:
        _SignalConnector.register_signal_handlers(connector)
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # what comes meanwhile is for ours
    try:
        _SignalConnector.register_signal_handlers(connector)
        signal.signal(signal.SIGTERM, ours)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _install(handler: Callable[[int, FrameType | None], None], numbers: Iterable[signal.Signals]) -> Handlers:
    """Handle the signals by `handler`, but for those that whoever started the process wants ignored; returns the
    handlers that it replaces."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    former = {number: signal.getsignal(number) for number in numbers}
    former = {number: other for number, other in former.items() if other not in (None, signal.SIG_IGN)}
    for number in former:
        signal.signal(number, handler)
    return former


def _put_back(former: Handlers) -> None:
    for number, handler in former.items():
        signal.signal(number, handler)


def _epoch_end_or_validation_follows(trainer: Trainer) -> bool:
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.should_stop or loop._num_ready_batches_reached() or loop._should_check_val_fx(fetcher)


def _resumes_inside_epochs(trainer: Trainer) -> bool:
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    return all(isinstance(part, _Stateful) for part in loader.flattened)
