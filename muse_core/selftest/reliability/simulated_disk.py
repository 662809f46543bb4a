"""What may be left on a disk after a power failure, given the calls that were made.

The model is as unkind as POSIX allows: without fsync of a file any part of its new content may be missing or zero;
without fsync of a directory each change of its names may have happened or not, in any combination in which changes
of one name keep their order. A rename is atomic.
"""

from __future__ import annotations

import posixpath
import random
from collections.abc import Iterable, Iterator
from typing import Union

import attrs

from muse_core.selftest.reliability.disks import Call

SECTOR = 64
"""Bytes that survive or vanish together; small, since the files of the experiment are."""


@attrs.define(eq=False)
class File:
    """An inode of a file."""

    durable: bytes = b""
    current: bytes = b""


@attrs.define(eq=False)
class Directory:
    """An inode of a directory: names as a running process sees them, and as they are on the disk for certain."""

    durable: dict[str, Inode] = attrs.field(factory=dict)
    current: dict[str, Inode] = attrs.field(factory=dict)


Inode = Union[File, Directory]  # noqa: UP007 - evaluated while Directory is being defined
Change = tuple[Directory, str, Inode | None]
Tree = dict[str, bytes | None]
"""Relative path → content, or None for a directory."""


class SimulatedDisk:
    """Follows recorded calls and tells what a crash may leave."""

    def __init__(self) -> None:
        self.root = Directory()
        self._opened: dict[int, Inode] = {}
        self._pending: list[tuple[Change, ...]] = []
        self._unsynced: set[File] = set()

    def apply(self, call: Call) -> None:
        if call.kind == "mark":
            return
        if call.kind in ("write", "truncate", "fsync"):
            self._apply_to_open(call)
            return
        folder, name = self._locate(call.path)
        if call.kind == "open":
            if call.path == ".":
                self._opened[call.opened] = self.root
                return
            if name not in folder.current:
                self._change((folder, name, File()))
            self._opened[call.opened] = folder.current[name]
        elif call.kind == "mkdir":
            self._change((folder, name, Directory()))
        elif call.kind == "rename":
            target, new_name = self._locate(call.value)
            self._change((folder, name, None), (target, new_name, folder.current[name]))
        elif call.kind in ("remove", "rmdir"):
            self._change((folder, name, None))
        else:
            raise ValueError(f"unknown call {call.kind}")

    def crash(self, rng: random.Random) -> Tree:
        """One of the trees that a power failure now may leave."""
        share = rng.choice((0.0, 0.3, 0.5, 0.7, 1.0))
        names: dict[Directory, dict[str, Inode]] = {}
        held_back: set[tuple[Directory, str]] = set()
        for changes in self._pending:
            touched = {(folder, name) for folder, name, _ in changes}
            if touched & held_back or rng.random() >= share:
                held_back |= touched
                continue
            for folder, name, inode in changes:
                _set(names.setdefault(folder, dict(folder.durable)), name, inode)
        kind = rng.choice(("nothing", "everything", "torn", "torn", "torn"))
        return dict(self._tree(self.root, "", names, kind, rng))

    def files(self) -> list[File]:
        """All files that exist now, in order of their paths."""
        return [inode for _, inode in sorted(_walk(self.root, ""), key=lambda pair: pair[0])]

    def _apply_to_open(self, call: Call) -> None:
        inode = self._opened[call.opened]
        if isinstance(inode, Directory):
            assert call.kind == "fsync"
            self._sync_names(inode)
        elif call.kind == "write":
            inode.current += call.value
            self._unsynced.add(inode)
        elif call.kind == "truncate":
            inode.current = inode.current[: call.value]
            self._unsynced.add(inode)
        else:
            inode.durable = inode.current
            self._unsynced.discard(inode)

    def _sync_names(self, directory: Directory) -> None:
        waiting = []
        for changes in self._pending:
            if any(folder is directory for folder, _, _ in changes):
                for folder, name, inode in changes:
                    _set(folder.durable, name, inode)
            else:
                waiting.append(changes)
        self._pending = waiting

    def _change(self, *changes: Change) -> None:
        for folder, name, inode in changes:
            _set(folder.current, name, inode)
        self._pending.append(changes)

    def _locate(self, path: str) -> tuple[Directory, str]:
        folder = self.root
        parts = posixpath.normpath(path).split("/")
        for part in parts[:-1]:
            inode = folder.current[part]
            assert isinstance(inode, Directory)
            folder = inode
        return folder, parts[-1]

    def _tree(
        self, folder: Directory, path: str, names: dict[Directory, dict[str, Inode]], kind: str, rng: random.Random
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, inode in sorted(names.get(folder, folder.durable).items()):
            where = f"{path}{name}"
            if isinstance(inode, File):
                yield where, _content(inode, kind, rng) if inode in self._unsynced else inode.durable
            else:
                yield where, None
                yield from self._tree(inode, f"{where}/", names, kind, rng)


def _set(names: dict[str, Inode], name: str, inode: Inode | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


def _content(file: File, kind: str, rng: random.Random) -> bytes:
    if kind == "nothing":
        return file.durable
    if kind == "everything" or not file.current.startswith(file.durable):
        return file.current
    start = len(file.durable)
    stop = rng.randint(start, len(file.current))
    torn = bytearray(file.current[:stop])
    for sector in range(start, stop, SECTOR):
        if rng.random() < 0.3:
            end = min(sector + SECTOR, stop)
            torn[sector:end] = bytes(end - sector)
    return bytes(torn)


def _walk(folder: Directory, path: str) -> Iterable[tuple[str, File]]:
    for name, inode in folder.current.items():
        if isinstance(inode, File):
            yield f"{path}{name}", inode
        else:
            yield from _walk(inode, f"{path}{name}/")
