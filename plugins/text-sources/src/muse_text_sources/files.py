"""Local files as documents."""

from __future__ import annotations

import glob
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext
from muse_core.errors import DataError
from muse_text_sources.options import FilesOptions
from muse_text_sources.rows import library, read_errors, text_of

TABLES = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
TEXTS = frozenset({".txt", ".md", ".rst"})
COMPRESSED = frozenset({".gz", ".xz", ".bz2", ".zst"})
UNIT = {"file": "document", "paragraph": "paragraph", "line": "line"}


class Files:
    """Files in the order of ``paths``, those of a folder or pattern in the order of their names.

    DataError when a path leads to no file.
    """

    def __init__(self, options: FilesOptions, context: SourceContext) -> None:
        self._options = options
        self._cache = context.cache
        self._files = find(options.paths)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self._options.text}/{self._options.documents}".encode())
        for path in self._files:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error
            digest.update(f"/{_suffix(path)}/{content}".encode())
        return f"files/{digest.hexdigest()}"

    def documents(self) -> Iterator[Document]:
        with library(self._cache) as (datasets, folder):
            for kind, paths in self._loads():
                column = "text" if kind == "text" else self._options.text
                names = self._names(kind, paths)
                name = next(names)
                try:
                    for row in datasets.load_dataset(
                        kind,
                        data_files=[glob.escape(str(path.absolute())) for path in paths],
                        split="train",
                        streaming=True,
                        cache_dir=folder,
                        **self._reading(kind, paths[0]),
                    ):
                        yield Document(text=text_of(row, column, name), name=name)
                        name = next(names)
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{name}: not UTF-8 ({error.reason} at byte {error.start}): convert it, or leave it out of "
                        "data.paths"
                    ) from error
                except read_errors() as error:
                    raise DataError(
                        f"{name}: cannot be read as {kind} ({error}): repair it, or leave it out of data.paths"
                    ) from error

    def _loads(self) -> Iterator[tuple[str, Sequence[Path]]]:
        """Files to read in one go: neighbours that are one document each, otherwise one file, so that every row can
        be named."""
        for kind, paths in itertools.groupby(self._files, key=format_of):
            if kind == "text" and self._options.documents == "file":
                yield kind, list(paths)
            else:
                yield from ((kind, [path]) for path in paths)

    def _names(self, kind: str, paths: Sequence[Path]) -> Iterator[str]:
        """What to call each row: the files in turn, or the rows of the only file."""
        if kind == "text" and self._options.documents == "file":
            return itertools.chain(map(str, paths), ["behind the last file"])
        return (f"{paths[0]}, row {row}" for row in itertools.count())

    def _reading(self, kind: str, path: Path) -> dict[str, Any]:
        if kind == "text":
            return {"sample_by": UNIT[self._options.documents]}
        return {"sep": "\t"} if kind == "csv" and ".tsv" in path.suffixes else {}


def find(paths: Sequence[str]) -> list[Path]:
    """The files that paths, folders and patterns lead to, each once. DataError names every one that leads nowhere."""
    found: dict[Path, None] = {}
    missing = []
    for index, given in enumerate(paths):
        files = _expand(str(Path(given).expanduser()))
        if not files:
            missing.append(f"data.paths[{index}]: {given!r} leads to no file of text (from folder {Path.cwd()})")
        found.update(dict.fromkeys(files))
    if missing:
        raise DataError("\n".join(missing))
    return list(found)


def format_of(path: Path) -> str:
    """Which of the readers of ``datasets`` reads a file: json, parquet, csv or text, by its suffix."""
    return TABLES.get(_suffix(path), "text")


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        readable = TEXTS | TABLES.keys()
        return sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file) in readable)
    if path.exists():
        return [path]
    return sorted(Path(match) for match in glob.glob(given, recursive=True) if Path(match).is_file())


def _suffix(path: Path) -> str:
    """The suffix that tells the format, beneath that of compression."""
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    return plain.suffix.lower()
