"""metrics.jsonl and events.jsonl: append-only rows that survive crashes and are never rewritten. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from muse_core.errors import StorageError
from muse_core.storage import canonical_json
from muse_core.storage.disk import Disk, inside, read_file, storage_errors, sync_directory, write_all

BLOCK = 1 << 16


class RowFile:
    """One append-only file of JSON rows, each with ``sequence`` (no gaps) and ``attempt``.

    Opening cuts off a torn tail: what a crash left after the last whole row.
    """

    def __init__(self, root: Path, name: str, disk: Disk):
        self.path = inside(root, Path(root) / name)
        self._disk = disk
        self._failure: str | None = None
        with storage_errors("open the records", self.path):
            is_new = not self.path.exists()
            self._handle = disk.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            last, end = last_row(self._handle)
            self.cut_bytes = os.fstat(self._handle).st_size - end
            """Bytes of torn tail that opening cut off."""
            if self.cut_bytes:
                disk.truncate(self._handle, end)
                disk.fsync(self._handle)
            if is_new:
                sync_directory(disk, self.path.parent)
        self.sequence = last["sequence"] if last else -1
        """Number of the last row; −1 before the first."""
        self.last_attempt = last["attempt"] if last else 0

    def append(self, row: Mapping[str, Any], *, sync: bool) -> None:
        """Writes one row; ``sync`` makes it and all before it durable. Raises StorageError where that fails, and at
        every further call."""
        if self._failure is not None:
            raise StorageError(f"{self.path}: nothing is written after a failure ({self._failure}) - restart the run")
        self.sequence += 1
        line = canonical_json.encode({**row, "sequence": self.sequence}, spell_nonfinite=True) + b"\n"
        try:
            with storage_errors("write a row", self.path):
                write_all(self._disk, self._handle, line)
                if sync:
                    self._disk.fsync(self._handle)
        except StorageError as error:
            self._failure = str(error)
            raise

    def sync(self) -> None:
        """Makes every row durable."""
        try:
            with storage_errors("sync the records", self.path):
                self._disk.fsync(self._handle)
        except StorageError as error:
            self._failure = str(error)
            raise

    def close(self) -> None:
        with storage_errors("close the records", self.path):
            self._disk.close(self._handle)


class Records:
    """The records of a run: metrics every step, events durably.

    ``attempt`` counts the processes that worked on the run; the default is one more than the last in the files. Rows
    of a stretch that was repeated after a rollback or a crash stay: of rows with the same step the last one counts.
    """

    def __init__(self, run_directory: Path, disk: Disk | None = None, attempt: int | None = None):
        disk = disk or Disk()
        self._metrics = RowFile(run_directory, "metrics.jsonl", disk)
        self._events = RowFile(run_directory, "events.jsonl", disk)
        self.attempt = attempt or 1 + max(self._metrics.last_attempt, self._events.last_attempt)
        self.cut_bytes = self._metrics.cut_bytes + self._events.cut_bytes
        """Bytes of torn tails that opening cut off."""

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Appends a row of numbers, durable after the next ``sync``. NaN and infinities are spelled as strings."""
        self._metrics.append({**row, "attempt": self.attempt}, sync=False)

    def event(self, row: Mapping[str, Any]) -> None:
        """Appends an intervention with its wall-clock time (seconds since 1970); durable on return."""
        self._events.append({"time": time.time(), **row, "attempt": self.attempt}, sync=True)

    def sync(self) -> None:
        """Makes the metrics durable; called with every checkpoint."""
        self._metrics.sync()

    def close(self) -> None:
        self._metrics.close()
        self._events.close()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file of records; a torn last line is left out, and JSON that is no row, as something else may have put
    in. StorageError names any other damaged line."""
    return (row for _, row in _numbered(path) if row is not None)


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line from 1, row), None for JSON that is no row."""
    if not path.exists():
        return
    with storage_errors("read the records", path):
        lines = read_file(path).split(b"\n")
    for index, line in enumerate(lines[:-1]):
        row = parse_row(line)
        if row is None:
            if not any(lines[index + 1 :]):
                return
            if not _is_json(line):
                raise StorageError(
                    f"{path}:{index + 1}: this line is damaged - restore it from a copy or delete the line"
                )
        yield index + 1, row


def _is_json(line: bytes) -> bool:
    try:
        canonical_json.decode(line)
    except ValueError:
        return False
    return True


NEEDED = {"train": ("step", "perplexity"), "eval": ("step",), "probe": ("step",)}
"""Keys that a run which goes on reads of its own rows, by event."""


def own_rows(path: Path, foreign: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of ``read_rows`` that a run wrote itself; the lines of the others, from 1, go into ``foreign``: what was
    put in by hand without the keys or types of a row or of its event."""
    for line, row in _numbered(path):
        if row is not None and _is_own(row):
            yield row
        elif foreign is not None:
            foreign.append(line)


def _is_own(row: Mapping[str, Any]) -> bool:
    def number(key: str) -> bool:
        return isinstance(row.get(key, 0), int | float) or row[key] in ("nan", "inf", "-inf")

    counts = all(type(row.get(key, 0)) is int for key in ("step", "stage"))
    event = row.get("event")
    known = isinstance(event, str) and all(key in row for key in NEEDED.get(event, ()))
    return known and counts and number("perplexity") and number("seconds")


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row of a line, or None if it is not a whole row."""
    try:
        row = canonical_json.decode(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("sequence")) is not int or type(row.get("attempt")) is not int:
        return None
    return row


def last_row(handle: int) -> tuple[dict[str, Any] | None, int]:
    """The last whole row of an open file and the offset after it, searched backwards from the end."""
    size = os.fstat(handle).st_size
    tail = b""
    start = size
    while True:
        end = len(tail)
        while (newline := tail.rfind(b"\n", 0, end)) >= 0:
            begin = tail.rfind(b"\n", 0, newline) + 1
            if begin == 0 and start > 0:
                break
            if (row := parse_row(tail[begin:newline])) is not None:
                return row, start + newline + 1
            end = newline
        if start == 0:
            return None, 0
        start = max(0, start - max(BLOCK, len(tail)))
        tail = os.pread(handle, size - start, start)
