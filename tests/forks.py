"""Processes that are forks of one that has imported what they need: imports take longer than what is tested."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A fork for each request; it goes on below with `request`, its directory, environment and output those of the request.
_SERVER = """
import json, os, signal, socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
connection.send(b"ready")
while True:
    message, files, *_ = socket.recv_fds(connection, 2**16, 1)
    if not message:  # the tests are gone
        os.killpg(0, signal.SIGKILL)
    request = json.loads(message)
    if "ended" in request:
        answer = os.waitstatus_to_exitcode(os.waitpid(request["ended"], 0)[1])
    elif answer := os.fork():
        os.close(files[0])
    else:
        break
    connection.send(json.dumps(answer).encode())
connection.close()
signal.signal(signal.SIGINT, signal.default_int_handler)  # as from a shell, whatever the tests were started from
for stream in (1, 2):
    os.dup2(files[0], stream)
os.close(files[0])
os.chdir(request["directory"])
os.environ |= request["environment"]
"""


class Forks:
    """What can be asked of the server."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def start(self, output: int, directory: Path, environment: dict[str, str], **request: object) -> int:
        """The id of a new process. output: file descriptor of what it prints; request: what else it is told."""
        told = {**request, "directory": str(directory), "environment": environment}
        socket.send_fds(self._connection, [json.dumps(told).encode()], [output])
        return int(json.loads(self._connection.recv(100)))

    def end(self, process: int) -> int:
        """Its exit code, once it has ended; below 0 the signal that killed it."""
        self._connection.send(json.dumps({"ended": process}).encode())
        return int(json.loads(self._connection.recv(100)))


@contextmanager
def forks(imports: str, then: str) -> Iterator[Forks]:
    """A server that runs `imports` once, and `then` in each fork; neither it nor its forks outlive the context."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", imports + _SERVER + then, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    theirs.close()
    try:
        assert ours.recv(100) == b"ready"
        yield Forks(ours)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        ours.close()
