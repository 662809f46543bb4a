"""One process per run directory. Imports no torch."""

from __future__ import annotations

import fcntl
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

ASKED_SECONDS = 0.2
"""How long a lock that is held is tried again: ``in_use`` in another process holds it for a moment."""


class RunLock:
    """An flock that the kernel lets go when its holder dies, however it dies; the holder's name is a file beside it."""

    def __init__(self, directory: Path, disk: Disk, what: str = "run directory"):
        self.directory = directory
        self._lock = FileLock(inside(directory, directory / LOCK), thread_local=False)
        with storage_errors("lock the run directory", directory / LOCK):
            try:
                self._lock.acquire(timeout=ASKED_SECONDS, poll_interval=0.01)
            except Timeout:
                raise StorageError(
                    f"{directory}: in use by {_holder(directory)} - wait for it to end, stop it, or choose another "
                    f"{what}"
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
            self._identity = _identity(directory / LOCK)

    def check(self) -> None:
        """Raises StorageError when this lock no longer protects the directory: it was moved or removed, or its lock
        file was, so that another process may work there too."""
        if _identity(self.directory / LOCK) == self._identity:
            return
        if not self.directory.is_dir():
            raise StorageError(
                f"{self.directory}: the directory was moved or removed while it was in use; nothing more is saved - "
                "move it back, or go on with it where it is, from its newest checkpoint"
            )
        raise StorageError(
            f"{self.directory / LOCK}: was removed or replaced while the directory was in use, so that another process "
            "may write there too; nothing more is saved - stop the other process, then go on from the newest checkpoint"
        )

    def remove(self) -> None:
        """Removes the lock's files while it is held."""
        for name in (HOLDER, LOCK):
            (self.directory / name).unlink(missing_ok=True)

    def release(self) -> None:
        self._lock.release()


def in_use(directory: Path) -> bool:
    """Whether a process holds the lock of a directory at this moment. Asking takes no permission to write, and two who
    ask do not take each other for the holder. True where a lock file is there and cannot be asked about."""
    try:
        handle = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)  # which lets it go
    return False


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None when nothing is there."""
    try:
        about = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return about.st_dev, about.st_ino


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
