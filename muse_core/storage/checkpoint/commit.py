"""The commit of a checkpoint: once it returns no crash loses it, and until then the previous one is untouched."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muse_core.errors import StorageError
from muse_core.fault_injection import fault_point
from muse_core.storage import canonical_json
from muse_core.storage.checkpoint.generation import CERTIFIED, TEMPORARY, file_name, folder_name
from muse_core.storage.checkpoint.manifest import MANIFEST, Manifest, marker
from muse_core.storage.checkpoint.ranks import Meeting, together
from muse_core.storage.checkpoint.retention import next_number, remove_leftovers
from muse_core.storage.checkpoint.snapshot import PARTS, Snapshot, state_hash
from muse_core.storage.checkpoint.tensor_file import Fingerprint, file_size, write_tensors
from muse_core.storage.disk import (
    Disk,
    Written,
    make_directory,
    remove_tree,
    sync_directory,
    write_new_file,
)

SLACK_BYTES = 64 * 1024
"""Manifest, marker, directory blocks and rounding to file system blocks."""


def bytes_needed(snapshot: Snapshot) -> int:
    """Bytes a generation of this snapshot takes, at most."""
    tensors = sum(file_size(getattr(snapshot, part)) for part in PARTS)
    return tensors + len(canonical_json.encode(snapshot.json)) + SLACK_BYTES


def commit(
    disk: Disk,
    ranks: Meeting,
    directory: Path,
    snapshot: Snapshot,
    *,
    needed: int,
    parent: int | None,
    certified: bool,
    digests: Mapping[str, Any],
) -> int:
    """Writes a new generation and returns its number. Raises OSError or StorageError.

    Each rank gives the tensors that it is to write, every tensor of the state once; rank 0 gives the JSON.

    Everything is written under a temporary name and synced; the rename, once its directory is synced, is the commit
    point. A failed sync is never repeated: the kernel may have dropped the data and would report success.
    """
    leads = ranks.rank == 0

    def prepare() -> int | None:
        if not leads:
            return None
        make_directory(disk, directory)
        remove_leftovers(disk, directory)
        check_free_space(disk, directory, needed)
        number = max(next_number(directory), (parent or 0) + 1)
        disk.mkdir(directory / folder_name(number, TEMPORARY))
        return number

    fault_point("commit.begin", None)
    number = together(ranks, prepare)[0]
    assert number is not None
    temporary = directory / folder_name(number, TEMPORARY)

    def publish() -> None:
        if not leads:
            return
        manifest = Manifest(
            generation=number,
            parent=parent,
            step=snapshot.step,
            files={name: Written(*one) for part in parts for name, one in part["files"].items()},
            state=_hash_of_all(snapshot, [part["tensors"] for part in parts]),
            digests=digests,
        ).encode()
        write_new_file(disk, temporary / MANIFEST, [manifest])
        if certified:
            write_new_file(disk, temporary / CERTIFIED, [marker(CERTIFIED, number, manifest)])
        fault_point("commit.after_manifest", None)
        sync_directory(disk, temporary)
        disk.rename(temporary, directory / folder_name(number))
        fault_point("commit.after_rename", None)
        sync_directory(disk, directory)
        fault_point("commit.after_sync", None)

    try:
        parts = together(ranks, lambda: _write_parts(disk, temporary, snapshot, ranks.rank))
        fault_point("commit.after_files", None)
        together(ranks, publish)
    except (OSError, StorageError):
        # What cannot be removed now is removed at the start of the next commit; the first error is the one to report.
        if leads and temporary.is_dir():
            with contextlib.suppress(OSError):
                remove_tree(disk, temporary)
        raise
    return number


def check_free_space(disk: Disk, directory: Path, needed: int) -> None:
    """Raises StorageError, saying how many bytes are needed, if they are not free."""
    free = disk.free_space(directory)
    if free < needed:
        raise StorageError(
            f"{directory}: a checkpoint needs {needed:,} bytes and {free:,} are free - free {needed - free:,} more, "
            "lower checkpoint.keep, or continue the run on a larger disk"
        )


def _write_parts(disk: Disk, temporary: Path, snapshot: Snapshot, rank: int) -> dict[str, Any]:
    """Writes this rank's files; returns their sizes and hashes and the fingerprints of their tensors."""
    files: dict[str, Written] = {}
    fingerprints = {}
    for part in PARTS:
        tensors = getattr(snapshot, part)
        name = file_name(part, "safetensors", rank)
        files[name], fingerprints[part] = write_tensors(disk, temporary / name, tensors)
    if rank == 0:
        name = file_name("state", "json", rank)
        files[name] = write_new_file(disk, temporary / name, [canonical_json.encode(snapshot.json)])
    return {
        "files": {name: list(one) for name, one in files.items()},
        "tensors": {part: {name: list(one) for name, one in named.items()} for part, named in fingerprints.items()},
    }


def _hash_of_all(snapshot: Snapshot, parts: list[dict[str, Any]]) -> str:
    """The hash of the state whose tensors the ranks have written. Raises ValueError for a tensor that two have."""
    tensors: dict[str, dict[str, Fingerprint]] = {part: {} for part in PARTS}
    for of_rank in parts:
        for part, named in of_rank.items():
            if twice := sorted(set(named) & set(tensors[part])):
                raise ValueError(f"{part}: {twice[0]} was written by two ranks")
            tensors[part] |= {name: Fingerprint(one[0], tuple(one[1]), one[2]) for name, one in named.items()}
    return state_hash(snapshot.step, snapshot.json, tensors)
