"""Python processes for tests that start with torch and other libraries imported, which takes a new interpreter three
seconds of a processor: each has its own pid, environment, working directory, streams and signals, and imports this
project itself.

``run`` and ``Popen`` are those of ``subprocess`` for a command ``[sys.executable, "-c" | "-m" | FILE, …]``. What a test
says about the start of an interpreter (sitecustomize, -X), about what is imported, or about hashes that differ between
processes needs ``subprocess`` itself. Elsewhere than on Linux they start a new interpreter.
"""

from __future__ import annotations

import atexit
import ctypes
import inspect
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

READ_AT_START = ("ATEN_", "CUDA_", "GOMP_", "KMP_", "LC_", "LANG", "LD_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON",
                 "PYTORCH_", "TORCH", "TRITON_")
"""Beginnings of names of variables that the interpreter or a library reads once, when it starts or is imported."""
READ_LATER = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""Those of them that can be told to a running process."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of linux/prctl.h."""


class Server:
    """A process to fork from; ends with this process."""

    def __init__(self, environment: Mapping[str, str]):
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, str(Path(__file__).with_name("warm_server.py")), str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        self._socket, self._owner = ours, os.getpid()
        atexit.register(self.end)

    def end(self) -> None:
        """Whoever else holds the socket; not for a fork of this process, which has the same things to do at its end."""
        if os.getpid() == self._owner:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._process.wait()

    def start(self, request: Mapping[str, Any], descriptors: list[int]) -> int:
        """The pid of a new child of this process."""
        body = json.dumps(request).encode()
        prctl = ctypes.CDLL(None).prctl
        prctl(SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self._socket, [len(body).to_bytes(8, "little")], descriptors)
            self._socket.sendall(body)
            said = self._socket.recv(8)
        finally:
            prctl(SUBREAPER, 0, 0, 0, 0)
        if not said:
            raise RuntimeError(f"the process to fork from ended with {self._process.wait()}: its words are above")
        return int.from_bytes(said, "little")


_servers: dict[tuple[tuple[str, str], ...], Server] = {}
_one_at_a_time = threading.Lock()


def _server(environment: Mapping[str, str]) -> Server:
    """That of these variables which are read at the start; others are those of this process."""
    def fixed(name: str) -> bool:
        return name.startswith(READ_AT_START) and name not in READ_LATER

    key = tuple(sorted((name, value) for name, value in environment.items() if fixed(name)))
    if key not in _servers:
        kept = {name: value for name, value in os.environ.items() if not fixed(name)}
        _servers[key] = Server(kept | dict(key))
    return _servers[key]


class Popen(subprocess.Popen):
    """``subprocess.Popen`` of a command ``[sys.executable, …]``: see above. Raises ValueError for another
    command, ``shell``, ``preexec_fn``, ``pass_fds`` and ``process_group``."""

    def _execute_child(self, *given: Any, **named: Any) -> None:
        if not sys.platform.startswith("linux"):
            super()._execute_child(*given, **named)
            return
        of = inspect.signature(super()._execute_child).bind(*given, **named).arguments
        command = [os.fsdecode(word) for word in of["args"]]
        form = command[0] == sys.executable and (command[1:2] in (["-c"], ["-m"]) or not command[1].startswith("-"))
        if not form or of["shell"] or of["preexec_fn"] or of["pass_fds"] or of["process_group"] not in (-1, None):
            raise ValueError(f"{command[:3]}: not [sys.executable, -c | -m | FILE, …] alone - start it with subprocess")
        environment = dict(os.environ if of["env"] is None else of["env"])
        request = {
            "arguments": command[1:],
            "cwd": os.path.abspath(of["cwd"] or os.getcwd()),
            "environment": environment,
            "session": bool(of["start_new_session"]),
        }
        places = (of["p2cread"], of["c2pwrite"], of["errwrite"])
        descriptors = [number if place == -1 else place for number, place in enumerate(places)]
        with _one_at_a_time:
            self.pid = _server(environment).start(request, descriptors)
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(of[name] for name in ends))


def run(
    command: list[Any],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """``subprocess.run`` with the ``Popen`` above."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            said = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, *said)
    if check:
        done.check_returncode()
    return done
