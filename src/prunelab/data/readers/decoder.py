"""RGB bytes of picture files, decoded in this process or, many at a time, by this file run as a program.

Threads would not do: of a small picture, most of the time goes into opening it, which holds the interpreter's lock.
The program imports Pillow alone, so that it starts in a tenth of a second. It ends when its standard input does:
when its parent is gone, whatever ended that.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from PIL import Image, ImageOps

Size = tuple[int, int]  # width, height
Decode = Callable[[Sequence[str], int | None], tuple[list[Size], bytes]]


def decode(paths: Sequence[str], image_size: int | None) -> tuple[list[Size], bytes]:
    """Size of each picture, and the uint8 (H, W, 3) pixels of all of them, one after the other.

    image_size: side of the square that every picture is scaled and centre-cropped to; None: as it is.
    Raises ValueError, of one line, for a picture that cannot be read.
    """
    sizes, pixels = [], []
    for path in paths:
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        except Exception as error:  # Pillow's decoders raise errors of a dozen types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"cannot read the picture {path} ({reason}): replace or delete it") from error
        if image_size is not None:
            picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BILINEAR)
        sizes.append(picture.size)
        pixels.append(picture.tobytes())
    return sizes, b"".join(pixels)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def decoders(num: int) -> Iterator[Decode]:
    """`decode`, but on `num` processes, each of which serves one calling thread at a time.

    Raises ChildProcessError if one of the processes dies.
    """
    command = [sys.executable, "-P", __file__]  # -P: beside this file are no modules to import
    processes: list[subprocess.Popen[bytes]] = []
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def decode_elsewhere(paths: Sequence[str], image_size: int | None) -> tuple[list[Size], bytes]:
        process = idle.get()
        try:
            return _ask(process, (paths, image_size))
        finally:
            idle.put(process)

    try:
        for _ in range(num):
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            idle.put(processes[-1])
        yield decode_elsewhere
    finally:
        for process in processes:
            process.kill()  # they write no files: nothing can be left half-done
            process.communicate()


def _ask(process: subprocess.Popen[bytes], question: Any) -> tuple[list[Size], bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump(question, process.stdin)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ChildProcessError(f"a process that decodes pictures ended with exit code {process.wait()}") from error
    if isinstance(answer, ValueError):
        raise answer
    return answer


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent decides
    while True:
        try:
            paths, image_size = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: Any = decode(paths, image_size)
        except ValueError as error:
            answer = error
        try:
            pickle.dump(answer, sys.stdout.buffer, protocol=pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the parent is gone
            os._exit(1)


if __name__ == "__main__":
    _serve()
