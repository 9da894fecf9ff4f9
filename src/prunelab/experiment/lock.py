"""One process at a time in a run's directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prunelab.experiment.errors import RunError

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class HeldError(RunError):
    """A directory that another process works in."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of the directory that the file `path` is in; the directory has to be there.

    The lock is the kernel's (a POSIX record lock), on the file, which says who has it and stays. It belongs to this
    process alone, not to those that it starts or forks, and is freed when it ends, however that is.
    Raises: HeldError if another process holds it.
    """
    with open(path, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            message = f"the run directory {path.parent} is held by {_named_in(file)}: wait for it or stop it"
            raise HeldError(message) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            warnings.warn(f"{path.parent} cannot be locked here: do not start this run twice at a time", stacklevel=3)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def holder_of(path: Path) -> str | None:
    """Which other process holds the lock `path`; None if none does, or that cannot be told.

    For processes that do not hold it themselves: looking would free it, as the kernel has it.
    """
    try:
        with open(path) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return _named_in(file)
    except OSError:
        pass
    return None


def _named_in(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
