"""Token files: the encoded splits of a corpus in one folder, written whole or not at all, verified when opened."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from muse_core.errors import DataError
from muse_core.storage.disk import ADVICE

FORMAT = 2
HEADER = "header.json"
BLOCK = 1 << 20


class Unusable(Exception):
    """Why a folder of token files cannot be read, in a phrase."""


def unreadable(error: Exception) -> Unusable:
    """What ``error`` says about the files. Raises DataError where it says nothing about them: too many are open."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        said = f"{error.filename or 'the cache'}: cannot read encoded text: {error.strerror}"
        raise DataError(f"{said} - {ADVICE[error.errno]}") from error
    return Unusable(f"it cannot be read ({type(error).__name__}: {error})")


@attrs.frozen(eq=False)
class Split:
    """The tokens of some documents, one after the other, each begun by the separator, with one more at the end."""

    name: str
    tokens: np.ndarray
    """(num_tokens,) uint16 or uint32, memory-mapped."""
    starts: np.ndarray
    """(documents,) int64: places of the documents' separators, increasing, the first 0."""
    separator: int
    num_bytes: int
    """UTF-8 length of the text."""


def write_split(
    folder: Path, name: str, documents: Iterable[tuple[np.ndarray, int]], *, dtype: np.dtype, separator: int
) -> dict[str, int]:
    """Write a split's tokens and document starts into ``folder``; returns its counts for the header.

    documents: token ids and UTF-8 length of each.
    """
    mark = np.array([separator], dtype=dtype).tobytes()
    starts: list[int] = []
    num_tokens = num_bytes = 0
    with (folder / f"{name}.tokens").open("wb") as file:
        for ids, size in documents:
            file.write(mark)
            file.write(ids.astype(dtype).tobytes())
            starts.append(num_tokens)
            num_tokens += 1 + len(ids)
            num_bytes += size
        file.write(mark)
    (folder / f"{name}.starts").write_bytes(np.array(starts, dtype="<i8").tobytes())
    return {"tokens": num_tokens + 1, "documents": len(starts), "bytes": num_bytes}


def write_described(folder: Path, name: str, documents: Iterable[Mapping[str, Any]]) -> None:
    """Write what the documents of a split are called, in their order."""
    (folder / _described_file(name)).write_text(json.dumps(list(documents)), encoding="utf-8")


def open_described(folder: Path, name: str, header: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """``name`` and ``source`` of the documents of a split; None where an earlier version encoded the text and kept
    none."""
    file = _described_file(name)
    if file not in header["files"]:
        return None
    found: list[dict[str, Any]] = json.loads((folder / file).read_text(encoding="utf-8"))
    return found


def _described_file(name: str) -> str:
    return f"{name}.documents.json"


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The narrower of little-endian uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def seal(folder: Path, target: Path, header: Mapping[str, Any]) -> None:
    """Name every file of ``folder`` with size and hash in a header, flush all to disk and move it to ``target``."""
    files = {path.name: _describe(path) for path in sorted(folder.iterdir())}
    body = json.dumps({**header, "format": FORMAT, "files": files}, sort_keys=True)
    (folder / HEADER).write_text(json.dumps({"sha256": _sha256(body), "header": body}))
    for path in (*folder.iterdir(), folder):
        _flush(path)
    if target.exists():
        shutil.rmtree(target)
    os.rename(folder, target)
    _flush(target.parent)


def read_header(folder: Path) -> dict[str, Any]:
    """The header, after every file has been compared with it. Unusable names the first that differs."""
    try:
        wrapped = json.loads((folder / HEADER).read_text())
        body = wrapped["header"]
        if _sha256(body) != wrapped["sha256"]:
            raise Unusable(f"{HEADER} is damaged")
        header: dict[str, Any] = json.loads(body)
        for name, described in header["files"].items():
            if _describe(folder / name) != described:
                raise Unusable(f"{name} is damaged")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(error) from error
    if header.get("format") != FORMAT:
        raise Unusable(f"it has format {header.get('format')}, not {FORMAT}")
    return header


def open_split(folder: Path, name: str, header: Mapping[str, Any]) -> Split:
    """Memory-map a split of a verified folder."""
    return Split(
        name=name,
        tokens=np.memmap(folder / f"{name}.tokens", dtype=np.dtype(header["dtype"]), mode="r"),
        starts=np.memmap(folder / f"{name}.starts", dtype="<i8", mode="r"),
        separator=header["separator"],
        num_bytes=header["splits"][name]["bytes"],
    )


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
