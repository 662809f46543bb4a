"""What a process that starts again would find in the tree that a crash left. Parts seen before are not read again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import attrs

from muse_core.errors import StorageError
from muse_core.metrics.jsonl import last_row, read_rows
from muse_core.selftest.reliability.simulated_disk import Tree
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.checkpoint.generation import describe, numbers, read

RUN = "run"


@attrs.frozen
class Checkpointed:
    """What the checkpoint directory gives."""

    number: int
    """Generation that would be resumed from; 0 if there is none."""
    state_hash: str
    certified: dict[int, bool]
    """Of every generation that is intact."""
    incomplete: dict[int, str]
    """Generation that stands under its name with parts missing or damaged → why."""
    resumable: set[int]
    """Generations that are intact and not abandoned."""
    error: str
    """Why nothing could be resumed, or empty."""


class Restarts:
    """Looks at trees by showing them in a real directory, in which only what differs is written."""

    def __init__(self, root: Path):
        self.root = root
        self.run = root / RUN
        self._shown: Tree = {}
        self._checkpoints: dict[int, Checkpointed] = {}
        self._rows: dict[tuple[str, bytes], int] = {}

    def checkpoints(self, tree: Tree) -> Checkpointed:
        key = _key(tree, f"{RUN}/checkpoints/")
        if key not in self._checkpoints:
            self._show(tree)
            self._checkpoints[key] = self._resume()
        return self._checkpoints[key]

    def events(self, tree: Tree) -> int:
        """Events that can be read."""
        return self._count(tree, "events.jsonl", lambda path: len(list(read_rows(path))))

    def metrics(self, tree: Tree) -> int:
        """Rows of metrics up to the last whole one, where a new process goes on."""
        return self._count(tree, "metrics.jsonl", _end_of_rows)

    def _count(self, tree: Tree, name: str, count: Callable[[Path], int]) -> int:
        content = tree.get(f"{RUN}/{name}")
        if content is None:
            return 0
        if (name, content) not in self._rows:
            self._show(tree)
            self._rows[name, content] = count(self.run / name)
        return self._rows[name, content]

    def _resume(self) -> Checkpointed:
        directory = self.run / "checkpoints"
        certified, incomplete, resumable = {}, {}, set()
        for number in numbers(directory, "gen"):
            try:
                generation = describe(directory, number)
                read(generation)
            except StorageError as error:
                incomplete[number] = str(error)
                continue
            certified[number] = generation.certified
            if not generation.abandoned:
                resumable.add(number)
        number, state_hash, problem = 0, "", ""
        try:
            if found := Checkpoints(self.run).newest(quarantine=False):
                number, state_hash = found[0].number, found[1].state_hash()
        except StorageError as error:
            problem = str(error)
        return Checkpointed(number, state_hash, certified, incomplete, resumable, problem)

    def _show(self, tree: Tree) -> None:
        for path in sorted(self._shown.keys() - tree.keys(), reverse=True):
            target = self.root / path
            if self._shown[path] is None:
                target.rmdir()
            else:
                target.unlink()
        for path, content in sorted(tree.items()):
            if path in self._shown and self._shown[path] == content:
                continue
            if content is None:
                (self.root / path).mkdir()
            else:
                (self.root / path).write_bytes(content)
        self._shown = tree


def _key(tree: Tree, prefix: str) -> int:
    return hash(frozenset((path, content) for path, content in tree.items() if path.startswith(prefix)))


def _end_of_rows(path: Path) -> int:
    handle = os.open(path, os.O_RDONLY)
    try:
        row, _ = last_row(handle)
    finally:
        os.close(handle)
    return row["sequence"] + 1 if row else 0
