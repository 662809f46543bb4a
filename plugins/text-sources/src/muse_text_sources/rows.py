"""Which column of a row is the text, and ``datasets``, through which the hub is read."""

from __future__ import annotations

import contextlib
import lzma
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from muse_core.errors import DataError

PREFERRED = ("text", "content")


class Column:
    """The column of one file or split that holds the text.

    A conversation, a list of turns with ``role`` and ``content``, is its turns as ``role: content``.

    wanted: its name. Default: ``text``, ``content`` or the only column of strings, decided by the first row that has
    a string; rows without the column, or without a value in it, have no text. Call :meth:`close` after the last row.
    """

    def __init__(self, wanted: str | None):
        self.wanted = wanted
        self._name = wanted
        self._first: Mapping[str, Any] | None = None
        self._found = False

    def text(self, row: Mapping[str, Any], where: str, *, numbers: bool = True) -> str:
        """The text of a row; empty when it has none. numbers: whether a string that spells a number counts when the
        column is chosen.

        DataError names the columns that there are.
        """
        self._first = row if self._first is None else self._first
        if self._name is None:
            strings = [key for key, value in row.items() if isinstance(value, str)]
            if not strings and None in row.values():
                return ""
            if not numbers and len(strings) > 1:
                strings = [key for key in strings if not _is_number(row[key])] or strings
            if strings:  # beside a conversation the only string is an id or a title
                strings += [key for key, value in row.items() if is_conversation(value)]
            self._name = choose(row, strings, None, where)
        if self._name not in row:
            self._refuse_better(row, where)
            return ""
        self._found = True
        value = row[self._name]
        if self._guessed and any(is_conversation(other) for name, other in row.items() if name != self._name):
            raise DataError(
                f"{where}: several columns of text; there are {_listed(row)}, where the rows before had {self._name!r} "
                "alone: choose one with data.text"
            )
        if value is None or value == []:  # a conversation without turns
            return ""
        if is_conversation(value):
            return of_turns(value)
        if not isinstance(value, str):
            raise DataError(
                f"{where}: column {self._name!r} holds {type(value).__name__}, not text; there are {_listed(row)}: "
                "choose one with data.text"
            )
        return value

    def close(self, where: str) -> None:
        """DataError when there were rows, and none had the wanted column."""
        if self._first is not None and self.wanted is not None and not self._found:
            choose(self._first, (), self.wanted, where)

    @property
    def _guessed(self) -> bool:
        """Whether the column was chosen because the first row had no other that could be text."""
        return self.wanted is None and self._name not in PREFERRED

    def _refuse_better(self, row: Mapping[str, Any], where: str) -> None:
        """A row that has ``text`` where the rows before had only a title: no choice was right for both."""
        if self._guessed and any(name in row for name in PREFERRED):
            raise DataError(
                f"{where}: there are {_listed(row)}, but no {self._name!r} as in the rows before: choose the column "
                "with data.text"
            )


def of_turns(value: Sequence[Mapping[str, str]]) -> str:
    """A conversation as text."""
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in value)


def is_conversation(value: Any) -> bool:
    """A list of turns, each with ``role`` and ``content``."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )


def choose(columns: Mapping[str, Any], strings: Sequence[str], wanted: str | None, where: str) -> str:
    """The name of the column of text among ``columns`` (name to value or type), of which ``strings`` hold strings.
    DataError when none fits."""
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"{where}: no column {wanted!r}; there are {_listed(columns)}: choose one with data.text")
        return wanted
    for column in PREFERRED:
        if column in columns:
            return column
    if len(strings) != 1:
        found = "several columns of text" if strings else "no column of text"
        raise DataError(f"{where}: {found}; there are {_listed(columns)}: choose one with data.text")
    return strings[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{column!r} ({_kind(value)})" for column, value in row.items())


def _kind(value: Any) -> str:
    plain = isinstance(value, str | int | float | list | dict | None)
    return type(value).__name__ if plain else str(value)


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
    """What ``datasets`` raises for content that it cannot read, for a form that it has no library for (ImportError),
    for columns whose types change (TypeError) and for files without rows (RuntimeError from a StopIteration)."""
    import datasets.exceptions
    import pyarrow

    return (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        ImportError,
        RuntimeError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
        pyarrow.ArrowException,
        datasets.exceptions.DatasetsError,
    )
