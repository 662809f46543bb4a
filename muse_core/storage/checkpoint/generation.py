"""One committed checkpoint on disk: its names, what it says about itself, and reading it with every byte verified."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from muse_core.storage import canonical_json
from muse_core.storage.checkpoint.manifest import MANIFEST, MAX_BYTES, Damaged, Manifest, marker
from muse_core.storage.checkpoint.snapshot import PARTS, Snapshot
from muse_core.storage.checkpoint.tensor_file import read_tensors
from muse_core.storage.disk import read_file

COMMITTED, TEMPORARY, TRASH, QUARANTINED = "gen", ".tmp", ".trash", "bad"
CERTIFIED, ABANDONED = "CERTIFIED.json", "ABANDONED.json"
_NAME = re.compile(r"(gen|\.tmp|\.trash|bad)-([0-9]{8,18})")


@attrs.frozen(kw_only=True)
class Generation:
    """A checkpoint as its manifest and markers describe it."""

    number: int
    """Grows with every commit and is never used again, while steps repeat after a rollback."""
    step: int
    """The next step to run."""
    parent: int | None
    path: Path
    certified: bool
    """The monitors found the model healthy at this point."""
    abandoned: bool
    """A rollback left this branch; it is never resumed from."""
    size: int
    """Bytes of its files."""
    state_hash: str
    """``Snapshot.state_hash``, whatever the number of ranks that wrote it."""
    digests: Mapping[str, Any]
    manifest: Manifest = attrs.field(repr=False)


def folder_name(number: int, kind: str = COMMITTED) -> str:
    return f"{kind}-{number:08d}"


def numbers(directory: Path, *kinds: str) -> list[int]:
    """Numbers of the generations of these kinds in a checkpoint directory, newest first."""
    if not directory.is_dir():
        return []
    found = [_NAME.fullmatch(name) for name in os.listdir(directory)]
    return sorted({int(match[2]) for match in found if match and match[1] in kinds}, reverse=True)


def file_name(part: str, suffix: str, rank: int) -> str:
    """Every rank writes files of its own, with some of the tensors: rank 0 ``model.safetensors``, rank 1
    ``model-00001.safetensors``."""
    return f"{part}.{suffix}" if rank == 0 else f"{part}-{rank:05d}.{suffix}"


def describe(directory: Path, number: int) -> Generation:
    """Reads manifest and markers. Raises Damaged if they are not what was committed, OSError if they cannot be read."""
    path = directory / folder_name(number)
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise Damaged("it is not a directory")
    data = _read(path / MANIFEST, MAX_BYTES)
    manifest = Manifest.decode(data)
    if manifest.generation != number:
        raise Damaged(f"its manifest belongs to generation {manifest.generation}")
    return Generation(
        number=number,
        step=manifest.step,
        parent=manifest.parent,
        path=path,
        certified=_marked(path / CERTIFIED, marker(CERTIFIED, number, data)),
        abandoned=_marked(path / ABANDONED, marker(ABANDONED, number, data)),
        size=len(data) + sum(one.size for one in manifest.files.values()),
        state_hash=manifest.state,
        digests=manifest.digests,
        manifest=manifest,
    )


def read(generation: Generation) -> Snapshot:
    """The snapshot that all files hold together, after checking size and sha256 of every file and the hash of the state
    that was decoded.

    Hashes are taken of the very bytes that are decoded, so nothing can change in between. Raises Damaged or OSError.
    """
    decoded: dict[str, Any] = {part: {} for part in PARTS}
    try:
        for name in sorted(generation.manifest.files):
            data = _verified(generation, name)
            part = re.split(r"[-.]", name)[0]
            if name == file_name("state", "json", 0):
                decoded["json"] = canonical_json.decode(data)
            elif name.endswith(".safetensors"):
                decoded[part] |= read_tensors(data)
        snapshot = Snapshot(generation.step, **decoded)
        same = snapshot.state_hash() == generation.state_hash
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(f"its content cannot be decoded ({error})") from error
    if not same:
        raise Damaged("its state does not match the hash in its manifest")
    return snapshot


def _verified(generation: Generation, name: str) -> bytes:
    wanted = generation.manifest.files[name]
    data = _read(generation.path / name, wanted.size)
    if len(data) != wanted.size:
        raise Damaged(f"{name} has {len(data)} bytes instead of {wanted.size}")
    if hashlib.sha256(data).hexdigest() != wanted.sha256:
        raise Damaged(f"{name} does not match its sha256")
    return data


def _read(path: Path, limit: int) -> bytes:
    """A file of a generation; one that is missing, too large or no regular file is damage, not a failing disk."""
    try:
        return read_file(path, limit=limit)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise Damaged(f"{path.name} is missing") from error
        if path.is_symlink() or not path.is_file() or path.stat().st_size > limit:
            raise Damaged(f"{path.name} is not a file of the size it was written with") from error
        raise


def _marked(path: Path, expected: bytes) -> bool:
    """A marker counts only if it is exactly the one for this manifest; anything else is not a marker."""
    try:
        return read_file(path, limit=len(expected)) == expected
    except OSError:
        return False
