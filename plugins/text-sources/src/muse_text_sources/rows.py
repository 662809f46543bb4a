"""Rows of a data set as documents: the one way in which files and the hub are read through ``datasets``."""

from __future__ import annotations

import contextlib
import lzma
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from muse_core.errors import DataError

PREFERRED = ("text", "content")


def text_of(row: Mapping[str, Any], wanted: str | None, where: str) -> str:
    """The text of a row; a missing value is an empty text, and a conversation, a list of turns with ``role`` and
    ``content``, is its turns as ``role: content``.

    wanted: name of the column. Default: ``text``, ``content`` or the only column of strings. DataError names the
    columns that there are.
    """
    column = wanted or _only_text_column(row, where)
    if column not in row:
        raise DataError(f"{where}: no column {column!r}; there are {_listed(row)}: choose one with data.text")
    value = row[column]
    if value is None:
        return ""
    if _is_conversation(value):
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: column {column!r} holds {type(value).__name__}, not text; there are {_listed(row)}: choose "
            "one with data.text"
        )
    return value


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )


def _only_text_column(row: Mapping[str, Any], where: str) -> str:
    for column in PREFERRED:
        if column in row:
            return column
    strings = [column for column, value in row.items() if isinstance(value, str)]
    if len(strings) != 1:
        found = "several columns of text" if strings else "no column of text"
        raise DataError(f"{where}: {found}; there are {_listed(row)}: choose one with data.text")
    return strings[0]


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{column!r} ({type(value).__name__})" for column, value in row.items())


@contextlib.contextmanager
def library(cache: Path) -> Iterator[tuple[ModuleType, str]]:
    """``datasets``, imported now and quiet meanwhile, and a folder for what it leaves behind, removed afterwards."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="datasets-", dir=cache) as folder:
            yield datasets, folder
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def read_errors() -> tuple[type[Exception], ...]:
    """What ``datasets`` raises for content that it cannot read."""
    import datasets.exceptions
    import pyarrow

    return (
        OSError,
        ValueError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
        pyarrow.ArrowException,
        datasets.exceptions.DatasetsError,
    )
