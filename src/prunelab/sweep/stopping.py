"""Signals to a sweep: the first one ends it, with time for its runs to save; the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS_TO_STOP = 6.5  # for runs to save and leave, before they are killed
SECONDS_TO_DIE = 1.5  # after which they are left to die with their servers
SECONDS_AT_MOST = 9.0  # after which this process ends, whatever it waits for
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _BrokenOff(BaseException):
    """A signal came in what it may break off."""


class Stop:
    """number: of the first signal that has come, 0 before. kill_at, leave_at: by the monotonic clock."""

    def __init__(self) -> None:
        self.number = 0
        self.kill_at = self.leave_at = 0.0
        self._may_break = False
        self._last_resort: threading.Timer | None = None

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        return 128 + self.number

    @contextmanager
    def on_signals(self, clean_up: Callable[[], None]) -> Iterator[None]:
        """Signals are taken here. clean_up: what there is to do before this process ends at once."""

        def take(number: int, frame: FrameType | None) -> None:
            if not self.number:
                self.number = number
                self.kill_at = time.monotonic() + SECONDS_TO_STOP
                self.leave_at = self.kill_at + SECONDS_TO_DIE
                if self._may_break:
                    raise _BrokenOff
            elif number != signal.SIGHUP:  # a terminal that goes says so twice, also after Ctrl-C
                clean_up()
                os._exit(128 + number)  # its servers and their runs end with it

        former = {number: signal.getsignal(number) for number in _SIGNALS}
        former = {number: handler for number, handler in former.items() if handler != signal.SIG_IGN}
        for number in former:
            signal.signal(number, take)
        try:
            yield
        finally:
            if self._last_resort is not None:
                self._last_resort.cancel()
            for number, handler in former.items():
                signal.signal(number, handler)

    def breaking_off(self, do: Callable[[], None]) -> None:
        """Do what takes seconds and can be done again; the first signal breaks it off."""
        try:
            self._may_break = True
            do()
        except _BrokenOff:
            pass
        finally:
            self._may_break = False

    def begin_last_resort(self) -> None:
        """See to it that this process ends in time, even if nothing that it waits for does."""
        if self._last_resort is None:
            self._last_resort = threading.Timer(SECONDS_AT_MOST, os._exit, [self.exit_code])
            self._last_resort.daemon = True
            self._last_resort.start()
