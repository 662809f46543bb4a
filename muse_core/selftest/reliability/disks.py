"""Disks for experiments: one that writes down every call, one that fails a chosen call. All really write."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from muse_core.storage.disk import Disk


class Call(NamedTuple):
    """One call that changed the file system. Files and directories that are open are named by their open number."""

    kind: str
    """open, write, truncate, fsync, mkdir, rename, remove, rmdir, or mark: a note of the experiment."""
    path: str = ""
    """Relative to the root of the recording."""
    opened: int = -1
    value: Any = None
    """Bytes written, new size, new path, or what a mark says."""


class VolatileDisk(Disk):
    """Syncs nothing: for experiments in which processes die but the power stays. A real sync takes milliseconds."""

    def fsync(self, handle: int) -> None:
        pass


class RecordingDisk(VolatileDisk):
    """Does everything and keeps ``calls``. ``forgets(call)`` leaves a call out, as if the code had not made it."""

    def __init__(self, root: Path, forgets: Callable[[Call], bool] = lambda call: False):
        self.root = root
        self.calls: list[Call] = []
        self._forgets = forgets
        self._opened: dict[int, tuple[int, str]] = {}
        self._count = 0

    def mark(self, **what: Any) -> None:
        """Notes what the code under test has promised up to here."""
        self.calls.append(Call("mark", value=what))

    def open(self, path: Path, flags: int) -> int:
        handle = super().open(path, flags)
        self._count += 1
        self._opened[handle] = (self._count, self._relative(path))
        self._note("open", path, opened=self._count)
        return handle

    def write(self, handle: int, data: memoryview) -> int:
        count = super().write(handle, data)
        self._note_open("write", handle, bytes(data[:count]))
        return count

    def truncate(self, handle: int, size: int) -> None:
        super().truncate(handle, size)
        self._note_open("truncate", handle, size)

    def fsync(self, handle: int) -> None:
        super().fsync(handle)
        self._note_open("fsync", handle, None)

    def close(self, handle: int) -> None:
        super().close(handle)
        del self._opened[handle]

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self._note("mkdir", path)

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self._note("rename", old, value=self._relative(new))

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._note("remove", path)

    def rmdir(self, path: Path) -> None:
        super().rmdir(path)
        self._note("rmdir", path)

    def _note(self, kind: str, path: Path, opened: int = -1, value: Any = None) -> None:
        self._keep(Call(kind, self._relative(path), opened, value))

    def _note_open(self, kind: str, handle: int, value: Any) -> None:
        opened, path = self._opened[handle]
        self._keep(Call(kind, path, opened, value))

    def _keep(self, call: Call) -> None:
        if not self._forgets(call):
            self.calls.append(call)

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.root)


class FailingDisk(VolatileDisk):
    """Fails call number ``fail_at`` (from 0) with ``error``; ``short`` first takes half of what is to be written.

    After the failure every further fsync of the same path is noted in ``repeated_syncs``.
    """

    def __init__(self, fail_at: int | None = None, error: int = errno.EIO, *, short: bool = False):
        self.fail_at = fail_at
        self.error = error
        self.short = short
        self.names: list[str] = []
        """Every call so far: ``"fsync gen…/MANIFEST.json"`` and the like."""
        self.failed: str | None = None
        self.repeated_syncs: list[str] = []
        self._paths: dict[int, str] = {}

    def open(self, path: Path, flags: int) -> int:
        self._reach("open", path)
        handle = super().open(path, flags)
        self._paths[handle] = str(path)
        return handle

    def write(self, handle: int, data: memoryview) -> int:
        if self.short and len(self.names) == self.fail_at and len(data) > 1:
            # The next call is the one that fails.
            self.fail_at += 1
            self._reach("write", self._paths[handle])
            return super().write(handle, data[: len(data) // 2])
        self._reach("write", self._paths[handle])
        return super().write(handle, data)

    def truncate(self, handle: int, size: int) -> None:
        self._reach("truncate", self._paths[handle])
        super().truncate(handle, size)

    def fsync(self, handle: int) -> None:
        self._reach("fsync", self._paths[handle])
        super().fsync(handle)

    def close(self, handle: int) -> None:
        super().close(handle)
        self._reach("close", self._paths.pop(handle))

    def mkdir(self, path: Path) -> None:
        self._reach("mkdir", path)
        super().mkdir(path)

    def rename(self, old: Path, new: Path) -> None:
        self._reach("rename", old)
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        self._reach("remove", path)
        super().remove(path)

    def rmdir(self, path: Path) -> None:
        self._reach("rmdir", path)
        super().rmdir(path)

    def free_space(self, path: Path) -> int:
        self._reach("free_space", path)
        return super().free_space(path)

    def _reach(self, kind: str, path: Path | str) -> None:
        name = f"{kind} {path}"
        index = len(self.names)
        self.names.append(name)
        if kind == "fsync" and name == self.failed:
            self.repeated_syncs.append(name)
        if index == self.fail_at:
            self.failed = name
            raise OSError(self.error, os.strerror(self.error), str(path))
