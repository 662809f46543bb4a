"""Plain text in files that a user names, read as the source ``files`` reads it for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muse_core.errors import DataError

MAX_TEXT = 2**30
"""Bytes of a text file at most."""
DOCUMENTS = {"file": None, "paragraph": "\n\n", "line": "\n"}
"""What a document of a text file may be → what ends it; None for the whole file."""
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""How compressed files begin."""


def unicode_of(data: bytes) -> str:
    """The text that these bytes of a file spell: UTF-8, a byte order mark at its beginning is none of it, and lines end
    with a line feed, as Windows' and old ones' ends are read. Raises ValueError, in a clause, for other bytes."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        for begin, name in PACKED.items():
            if data.startswith(begin):
                raise ValueError(f"is compressed by {name} - unpack it first") from None
        raise ValueError(
            f"is not UTF-8 text ({error.reason} at byte {error.start}, line {data.count(10, 0, error.start) + 1}) - "
            "write it in UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def cut(text: str, documents: str) -> list[str]:
    """The documents of a plain text, one of ``DOCUMENTS``; those without any character are left out."""
    end = DOCUMENTS[documents]
    return [part for part in ([text] if end is None else text.split(end)) if part]


def read_texts(files: Sequence[Path], documents: str) -> list[str]:
    """The documents of text files. Raises DataError for a file that cannot be read, is not UTF-8 or holds no text."""
    found: list[str] = []
    for file in files:
        try:
            with file.open("rb") as opened:
                data = opened.read(MAX_TEXT + 1)
            if len(data) > MAX_TEXT:
                raise DataError(f"{file}: is larger than {MAX_TEXT} bytes - give a part of it")
            text = unicode_of(data)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None
        except ValueError as error:
            raise DataError(f"{file}: {error}") from None
        if not text.strip():
            raise DataError(f"{file}: holds no text; give a file with at least one character that is no space")
        found += cut(text, documents)
    return found
