"""The process that ``muse_core.testing.warm`` forks its processes from: a Python that has imported libraries and
nothing of this project. Run as a script, with the file descriptor of a socket as its argument.

A request is a length, JSON and the descriptors 0, 1 and 2 of the new process; the answer is its pid. The new process is
handed over to the one that asked: the process between them ends at once, and who asked is a subreaper.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import sys
import time
import types
from typing import Any

LIBRARIES = (
    "attrs", "cattrs", "click.testing", "filelock", "numpy", "packaging.requirements", "packaging.specifiers", "pluggy",
    "rich.console", "rich.progress", "rich.table", "rich.traceback", "safetensors.torch", "tokenizers", "torch",
    "torch._dynamo", "torch.distributed", "torch.nn.attention", "torch.utils.checkpoint", "torch.utils.data",
)
"""What is imported beforehand. Libraries that read the environment when they are imported, other than those variables
for which ``warm`` starts a server of its own, are not among them."""


def received(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next request and its three descriptors; None at the end."""
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    if not head:
        return None
    rest = int.from_bytes(head, "little")
    parts = []
    while rest:
        parts.append(connection.recv(rest))
        rest -= len(parts[-1])
    return json.loads(b"".join(parts)), list(descriptors)


def fork(connection: socket.socket) -> bool:
    """A process whose parent is the one that asked; True in the new one."""
    reading, writing = os.pipe()
    between = os.fork()
    if between:
        os.close(writing)
        pid = os.read(reading, 8)
        os.close(reading)
        os.waitpid(between, 0)
        connection.sendall(pid)
        return False
    os.close(reading)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.write(writing, pid.to_bytes(8, "little"))
        os._exit(0)
    os.close(writing)
    while os.getppid() == parent:
        time.sleep(0.0005)
    return True


def served(connection: socket.socket) -> dict[str, Any]:
    """Forks until the other side is closed, which ends this process. Returns in the new processes, with the request of
    each."""
    while (asked := received(connection)) is not None:
        request, descriptors = asked
        if fork(connection):
            connection.close()
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
    raise SystemExit(0)


def settle(request: dict[str, Any], base: list[str]) -> None:
    """Makes of this process what the interpreter makes of a new one; ``base`` is its path of modules without what the
    environment says."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin = sys.__stdin__ = stream(0, "r", sys.stdin)
    sys.stdout = sys.__stdout__ = stream(1, "w", sys.stdout)
    sys.stderr = sys.__stderr__ = stream(2, "w", sys.stderr)
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    more = os.environ.get("PYTHONPATH", "")
    sys.path[:] = [*(os.path.abspath(one) for one in more.split(os.pathsep) if one), *base]
    sys.orig_argv[:] = [sys.executable, *request["arguments"]]
    importlib.invalidate_caches()


def stream(number: int, mode: str, like: Any) -> Any:
    """A standard stream, with the encoding of another and buffered as the interpreter does."""
    lines = mode == "w" and (number == 2 or os.isatty(number))
    buffer = open(number, mode + "b", closefd=False)
    return io.TextIOWrapper(buffer, encoding=like.encoding, errors=like.errors, line_buffering=lines)


def run(arguments: list[str]) -> None:
    """``python ARGUMENTS``: ``-c CODE …``, ``-m MODULE …`` or ``FILE …``."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    what, rest = arguments[0], arguments[1:]
    front = "" if what == "-c" else os.getcwd() if what == "-m" else os.path.dirname(os.path.abspath(what))
    if not sys.flags.safe_path:
        sys.path.insert(0, front)
    if what == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif what == "-m":
        sys.argv[:] = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]  # which is what -m calls
    else:
        sys.argv[:] = arguments
        main.__dict__["__file__"] = what
        with open(what, "rb") as file:
            source = file.read()
        exec(compile(source, what, "exec"), main.__dict__)


def leave(kept: list[types.ModuleType]) -> None:
    """The last thing before the interpreter takes its modules apart: libraries stay, since to write into the memory of
    each of their objects would copy it from the server; for the same reason no destructor of theirs runs."""
    libraries = {id(module) for module in kept}
    for name in [name for name, module in sys.modules.items() if id(module) in libraries]:
        del sys.modules[name]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)  # called first, with the exit code


if __name__ == "__main__":
    own = [os.path.abspath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    here = os.path.dirname(os.path.abspath(__file__))
    base = [one for one in sys.path if one not in (here, *own)]
    sys.path[:] = [*own, *base]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: who asks for processes ends, and this one with it
    kept: list[types.ModuleType] = []
    atexit.register(leave, kept)  # before what libraries register, and therefore called behind it
    before = set(sys.modules.values())
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    kept += set(sys.modules.values()) - before
    gc.collect()
    gc.freeze()
    request = served(socket.socket(fileno=int(sys.argv[1])))
    settle(request, base)
    run(request["arguments"])
