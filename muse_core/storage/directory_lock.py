"""One process per run directory. Imports no torch."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from muse_core.errors import StorageError
from muse_core.storage import canonical_json
from muse_core.storage.disk import Disk, inside, read_file, storage_errors, write_file_atomically

LOCK, HOLDER = "run.lock", "run.lock.holder"
PATIENCE_SECONDS = 0.5
"""How long a refused process waits for the holder, which may only just have won the lock, to write who it is."""


class RunLock:
    """An flock that the kernel lets go when its holder dies, however it dies; the holder's name is a file beside it."""

    def __init__(self, directory: Path, disk: Disk):
        self.directory = directory
        self._lock = FileLock(inside(directory, directory / LOCK), thread_local=False)
        with storage_errors("lock the run directory", directory / LOCK):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise StorageError(
                    f"{directory}: in use by {_holder(directory)} - wait for it to end, stop it, or choose another "
                    "run directory"
                ) from None
            except NotImplementedError:
                raise StorageError(_no_flock(directory)) from None
            if isinstance(self._lock, SoftFileLock):
                self._lock.release()
                raise StorageError(_no_flock(directory))
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            try:
                write_file_atomically(disk, inside(directory, directory / HOLDER), canonical_json.encode(about))
            except (OSError, StorageError):
                self._lock.release()
                raise

    def release(self) -> None:
        self._lock.release()


def _no_flock(directory: Path) -> str:
    return f"{directory}: this file system has no locks, so two runs could write here - choose a directory on another"


def _holder(directory: Path) -> str:
    """Who holds the lock, in words. The file may be that of an earlier holder until the present one has written it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            about = canonical_json.decode(read_file(directory / HOLDER, limit=4096))
            pid, host = int(about["pid"]), str(about["host"])
            if host != socket.gethostname() or Path(f"/proc/{pid}").exists() or not Path("/proc").is_dir():
                return f"process {pid} on {host}"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if time.monotonic() > deadline:
            return "a process that has not said its name"
        time.sleep(0.02)
