from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prunelab.data.readers import decoder
from prunelab.data.readers.decoder import decode, decoders

WritePicture = Callable[..., Path]


def test_pixels_are_rows_of_rgb_one_picture_after_the_other(tmp_path: Path, write_picture: WritePicture) -> None:
    paths = [str(write_picture(tmp_path / f"{red}.png", red, size)) for red, size in ((7, (2, 1)), (9, (1, 2)))]
    assert decode(paths, None) == ([(2, 1), (1, 2)], bytes([7, 0, 0] * 2 + [9, 0, 0] * 2))
    assert decode(paths, 1) == ([(1, 1), (1, 1)], bytes([7, 0, 0, 9, 0, 0]))


def test_processes_answer_as_this_one_and_are_gone_afterwards(
    tmp_path: Path, write_picture: WritePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(decoder.subprocess, "Popen", Recorded)
    paths = [str(write_picture(tmp_path / f"{red}.png", red)) for red in range(3)]
    with decoders(2) as elsewhere:
        for _ in range(3):
            assert elsewhere(paths, None) == decode(paths, None)
        with pytest.raises(ValueError, match="cannot read the picture nowhere"):
            elsewhere(["nowhere.png"], None)
        assert elsewhere(paths, 2) == decode(paths, 2)  # after an error too
    assert [process.poll() is not None for process in started] == [True, True]


def test_a_process_that_dies_is_an_error(tmp_path: Path, write_picture: WritePicture) -> None:
    path = str(write_picture(tmp_path / "a.png"))
    with decoders(1) as elsewhere:
        elsewhere([path], None)
        (child,) = children(os.getpid())
        os.kill(child, signal.SIGKILL)
        with pytest.raises(ChildProcessError, match="decodes pictures ended with exit code -9"):
            elsewhere([path], None)


def test_a_killed_parent_leaves_no_process(tmp_path: Path, write_picture: WritePicture) -> None:
    path = str(write_picture(tmp_path / "a.png"))
    program = (
        "import sys; from importlib.util import module_from_spec, spec_from_file_location as at\n"
        f"spec = at('decoder', {decoder.__file__!r}); module = module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        f"with module.decoders(2) as decode:\n  decode([{path!r}], None); decode([{path!r}], None)\n"
        "  print('ready', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        watched = [os.pidfd_open(child) for child in children(parent.pid)]
        parent.kill()
        parent.wait()
        for child in watched:  # readable as soon as its process has ended
            assert select.select([child], [], [], 60)[0]
            os.close(child)
    assert len(watched) == 2


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
