"""`python -m prunelab.sweep.fork_server PARENT`: imports what a run needs, once, and forks itself for each run.

Imports take longer than many a small run. A run gets a process of its own all the same: it cannot change what the next
one finds, and its memory is gone when it ends. On stdin comes a line of JSON for each run (`Order`), on stdout go the
id of its process and its exit code. The server ends with its parent, and the run with the server.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

from prunelab.launcher import end_with
from prunelab.memory import keep_freed_memory

TRAIN = Path(__file__).resolve().parents[3] / "train.py"
HELD = os.EX_TEMPFAIL  # exit code of a run whose directory another process works in
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@dataclass(frozen=True)
class Order:
    """A run to make. command: a line to begin its log with. arguments: of train.py. environment: on top of the own."""

    command: str
    arguments: list[str]
    log: str
    directory: str
    threads: int
    environment: dict[str, str] = field(default_factory=dict)

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def serve(parent: int) -> None:
    """Make one run after the other until stdin ends, or the process `parent`, which has started this one."""
    end_with(parent)
    keep_freed_memory()
    for module in ("prunelab.cli", "prunelab.pruning.criteria", "matplotlib.figure", "sklearn.datasets"):
        import_module(module)
    answers = os.dup(1)
    os.dup2(2, 1)  # what anything prints is no answer
    server = os.getpid()
    for line in sys.stdin.buffer:
        order = Order(**json.loads(line))
        child = os.fork()
        if child == 0:
            os.close(answers)
            _run(order, server)
        os.write(answers, b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))


def _run(order: Order, server: int) -> None:
    """Become the run; never returns."""
    end_with(server)
    code = 1
    try:
        _as_from_a_shell(order)
        import torch

        from prunelab.cli import main

        torch.set_num_threads(order.threads)
        code = main(order.arguments, held=HELD)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Python's own end would take seconds, to free what the system frees anyway


def _as_from_a_shell(order: Order) -> None:
    """Signals, output, place and name of the process as if the command had been typed."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # Ray blocks some
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, file in ((0, nothing), (1, log), (2, log)):
        os.dup2(file, stream)
    os.close(log)
    os.close(nothing)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(f"$ {order.command}", flush=True)
    os.chdir(order.directory)
    os.environ.update(order.environment)
    sys.path.append(order.directory)  # for import paths of the user's own, as train.py does
    # with several devices Lightning starts its other processes by the command that the first was started by
    sys.argv = [str(TRAIN), *order.arguments]
    sys.modules["__main__"].__spec__ = None


if __name__ == "__main__":
    serve(int(sys.argv[1]))
