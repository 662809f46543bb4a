"""MANIFEST.json: what a generation consists of, and the markers that are set on it later. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import attrs

from muse_core.errors import StorageError
from muse_core.storage import canonical_json
from muse_core.storage.disk import Written

FORMAT = 1
MANIFEST = "MANIFEST.json"
MAX_BYTES = 16 * 2**20
FILE_NAME = re.compile(r"(model|optimizer|state)(-[0-9]{5})?\.safetensors|state(-[0-9]{5})?\.json")


class Damaged(StorageError):
    """A generation is not what was committed; the message says why."""


@attrs.frozen(kw_only=True)
class Manifest:
    """Sizes and hashes of a generation's files and where it comes from."""

    generation: int
    parent: int | None
    """Generation from which this run went on to this one."""
    step: int
    files: Mapping[str, Written]
    state: str
    """``Snapshot.state_hash`` of what the files of all ranks hold together."""
    digests: Mapping[str, Any]
    """Digests of recipe, plugins, data: whatever the run gave."""

    def encode(self) -> bytes:
        """Canonical JSON with its own sha256 in it."""
        body = {
            "format": FORMAT,
            "generation": self.generation,
            "parent": self.parent,
            "step": self.step,
            "files": {name: {"bytes": one.size, "sha256": one.sha256} for name, one in self.files.items()},
            "states": [self.state],
            "digests": dict(self.digests),
        }
        return canonical_json.encode({**body, "sha256": _sha256(canonical_json.encode(body))})

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Raises Damaged unless ``data`` is, byte for byte, what ``encode`` writes."""
        try:
            body = canonical_json.decode(data)
            files = {name: Written(_count(one["bytes"]), str(one["sha256"])) for name, one in body["files"].items()}
            manifest = cls(
                generation=_count(body["generation"]),
                parent=None if body["parent"] is None else _count(body["parent"]),
                step=_count(body["step"]),
                files=files,
                state=_only(body["states"]),
                digests=body["digests"],
            )
            same = body["format"] == FORMAT and manifest.encode() == data
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{MANIFEST} is malformed ({error})") from error
        if not same:
            raise Damaged(f"{MANIFEST} does not match its own hash")
        if strange := [name for name in files if not FILE_NAME.fullmatch(name)]:
            raise Damaged(f"{MANIFEST} lists {strange[0]!r}, which no checkpoint has")
        return manifest


def marker(kind: str, generation: int, manifest: bytes) -> bytes:
    """Content of the file that marks one generation, of exactly this manifest, as ``kind``."""
    return canonical_json.encode(
        {"format": FORMAT, "mark": kind, "generation": generation, "manifest_sha256": _sha256(manifest)}
    )


def _only(states: Any) -> str:
    """The hash of a checkpoint. Versions before several processes could train would have kept one for each of them."""
    if not isinstance(states, list) or len(states) != 1 or not isinstance(states[0], str):
        raise ValueError("it does not hold one state")
    return states[0]


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
