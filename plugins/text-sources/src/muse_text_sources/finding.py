"""Which files paths, folders and patterns lead to."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from muse_core.errors import DataError

TABLES = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
TEXTS = frozenset({".txt", ".md", ".rst"})
COMPRESSED = frozenset({".gz", ".xz", ".bz2", ".zst"})
RUN_MARKS = ("muse.lock.toml", "run.lock", "run.lock.holder")
"""A folder with one of these is a run's: its records are not text to learn from, and a run would read itself."""
SAVED = (("dataset_dict.json",), ("dataset_info.json", "state.json"))
"""Files that ``datasets`` puts into a folder by ``DatasetDict.save_to_disk`` and by ``Dataset.save_to_disk``."""
MOST_ENTRIES = 250_000
"""Files and folders that one path may make us look at."""


class TooMany(Exception):
    """A folder holds more than MOST_ENTRIES files and folders."""


def find(paths: Sequence[str]) -> list[Path]:
    """The files that paths, folders and patterns lead to, each once however many links lead to it, in the order of
    ``paths``, within a folder or pattern in that of names.

    Left out of folders and patterns: hidden names unless the pattern writes the dot, directories of runs, and what is
    no regular file. DataError names every path that leads nowhere, is a pipe or a device, or holds too many files.
    """
    found: dict[str, Path] = {}
    problems = []
    for index, given in enumerate(paths):
        try:
            for path in _expand(given):
                found.setdefault(os.path.realpath(path), path)
        except DataError as error:
            problems.append(f"data.paths[{index}]: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return list(found.values())


def everything(folder: Path) -> list[Path]:
    """Every file at any depth of a folder, with what :func:`find` leaves out left out. DataError when there are too
    many."""
    try:
        return list(_Walk().matches(folder, ("**", "*")))
    except TooMany:
        raise DataError(_too_many(str(folder))) from None
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error


def saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` wrote this folder."""
    return any(all((folder / name).is_file() for name in names) for names in SAVED)


def suffix(path: Path) -> str:
    """The suffix that tells the format, beneath that of compression."""
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    return plain.suffix.lower()


def format_of(path: Path) -> str:
    """How a file is read, by its suffix: json, parquet, csv or text."""
    return TABLES.get(suffix(path), "text")


def _expand(given: str) -> list[Path]:
    if not given:
        raise DataError('is empty: name a file, a folder ("." for this one) or a pattern')
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:
        raise DataError(f"{given!r} leads to no file: there is no such home directory; write the path") from error
    walk = _Walk()
    try:
        folder = path if path.is_dir() else path.parent
        if saved(folder) and (path.is_dir() or suffix(path) == ".arrow"):
            raise DataError(f"{given!r} is a data set that save_to_disk wrote: read it with {{ use = \"hub\", "
                            f"name = {str(folder)!r} }}")
        if path.is_dir():
            readable = TEXTS | TABLES.keys()
            files = [file for file in walk.matches(path, ("**", "*")) if suffix(file) in readable]
        elif os.path.lexists(path):
            if not path.exists():
                raise DataError(f"{given!r} is a link that leads nowhere")
            if not path.is_file():
                raise DataError(f"{given!r} is a pipe or a device, not a file: only files are read")
            files = [path]
        else:
            files = list(walk.matches(Path(path.anchor), path.parts[1:] if path.anchor else path.parts))
    except TooMany:
        raise DataError(_too_many(given)) from None
    except OSError as error:
        raise DataError(f"{error.filename or given}: cannot be read ({error.strerror})") from error
    if not files:
        raise DataError(_nothing_at(given, path))
    return files


def _nothing_at(given: str, path: Path) -> str:
    if path.is_dir():
        ends = ", ".join(sorted(TEXTS | TABLES.keys()))
        return f"{given!r} leads to no file of text: the folder holds none that ends in {ends}"
    what = "no file matches this pattern" if glob.has_magic(given) else "it does not exist"
    return f"{given!r} leads to no file of text: {what} (from folder {os.getcwd()})"


def _too_many(given: str) -> str:
    return (
        f"{given!r} holds more than {MOST_ENTRIES:,} files and folders: name a folder further down, or pack the "
        "texts into fewer files, such as JSON Lines"
    )


class _Walk:
    """One walk along a pattern. Folders are entered once below each ``**``, so that links that lead back end."""

    def __init__(self) -> None:
        self._left = MOST_ENTRIES

    def matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Regular files below a folder whose path fits the parts of a pattern, in the order of names."""
        if not parts:
            return
        head, rest = parts[0], parts[1:]
        if head == "**":
            yield from self._anywhere(folder, rest or ("*",))
        elif os.path.lexists(folder / head) or not glob.has_magic(head):
            yield from self._one(folder / head, rest)
        else:
            hidden = head.startswith(".")
            for name in self._names(folder, hidden):
                if fnmatch.fnmatchcase(name, head):
                    yield from self._one(folder / name, rest)

    def _one(self, path: Path, rest: Sequence[str]) -> Iterator[Path]:
        if not rest:
            if path.is_file():
                yield path
        elif path.is_dir():
            yield from self.matches(path, rest)

    def _anywhere(self, top: Path, rest: Sequence[str]) -> Iterator[Path]:
        """``**``: below the folder at any depth, without recursion, since folders may be nested thousands deep."""
        seen: set[tuple[int, int]] = set()
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            yield from self.matches(folder, rest)
            waiting += [path for name in reversed(self._names(folder, False)) if (path := folder / name).is_dir()]

    def _names(self, folder: Path, hidden: bool) -> list[str]:
        """Sorted names in a folder; none when it is a run's."""
        names = sorted(os.listdir(folder))
        self._left -= len(names)
        if self._left < 0:
            raise TooMany
        if any(mark in names for mark in RUN_MARKS):
            return []
        return [name for name in names if hidden or not name.startswith(".")]


