"""Files as rows of text. Only the column of the text is looked at, and what stands in it stays as it is written: types
guessed from a file's beginning would refuse sound files, missing values guessed from words would drop texts."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from muse_core.errors import DataError
from muse_text_sources.finding import format_of, suffix
from muse_text_sources.rows import Column, choose, is_conversation, of_turns

BLOCK = 1 << 20
ROWS = 1024

Texts = Iterator[tuple[str, str]]
"""(name of the row for messages, its text; empty where the row has none)."""


def read_file(path: Path, *, wanted: str | None, documents: str) -> Texts:
    """The texts of one file in their order; none of a table without rows.

    wanted: name of the column, None for the default of :class:`Column`. documents: what a document is in plain text.
    DataError with file, place and reason for what cannot be read.
    """
    kind = format_of(path)
    place = _Place(str(path))
    try:
        yield from READERS[kind](path, place, documents if kind == "text" else wanted)
    except UnicodeDecodeError as error:
        where = "" if kind == "parquet" else _not_utf8(path)
        raise DataError(
            f"{path}: not UTF-8 ({error.reason}{where}): convert it, or leave it out of data.paths"
        ) from error
    except (*_unreadable(), RecursionError) as error:
        raise DataError(
            f"{place}: cannot be read as {kind} ({error}): repair it, or leave it out of data.paths"
        ) from error


def _not_utf8(path: Path) -> str:
    """Where the first byte that is not UTF-8 stands; what a reader raises tells its place in a block of the text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    before, lines = 0, 1
    with _bytes(path) as file:
        while block := file.read(BLOCK):
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return _spelt(before - held + error.start, lines + block.count(b"\n", 0, max(error.start - held, 0)))
            before, lines = before + len(block), lines + block.count(b"\n")
    return _spelt(before - len(decoder.getstate()[0]), lines)


def _spelt(byte: int, line: int) -> str:
    return f" at byte {byte}, line {line}"


class _Place:
    """Where in a file the reader is."""

    def __init__(self, path: str):
        self.path = path
        self.line: int | None = None

    def __str__(self) -> str:
        return self.path if self.line is None else f"{self.path}, line {self.line}"


def _unreadable() -> tuple[type[Exception], ...]:
    """What the readers raise for content that they cannot read."""
    import pyarrow

    return OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zlib.error, pyarrow.ArrowException


def _zstd(path: Path, mode: str) -> Any:
    """By pyarrow, which refuses a truncated file; ``zstandard``'s stream reader ends it without a word."""
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd,
}


def _bytes(path: Path) -> IO[bytes]:
    return OPENERS.get(path.suffix, open)(path, "rb")


def _lines(file: IO[bytes], encoding: str, newline: str | None) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding=encoding, newline=newline)


def _text(path: Path, place: _Place, documents: str) -> Texts:
    """``muse_core.data.plain_text`` reads what a command is given in the same way."""
    with _bytes(path) as file, _lines(file, "utf-8-sig", None) as text:
        if documents == "file":
            yield str(path), text.read()
            return
        pieces = (line.rstrip("\n") for line in text) if documents == "line" else _paragraphs(text)
        row = -1
        for row, piece in enumerate(pieces):
            yield f"{path}, row {row}", piece
        if row < 0:
            yield str(path), ""  # as of a file that is one document, so that the empty one is named


def _paragraphs(text: IO[str]) -> Iterator[str]:
    rest = ""
    while block := text.read(BLOCK):
        *whole, rest = (rest + block).split("\n\n")
        yield from filter(None, whole)
    if rest:
        yield rest


def _json(path: Path, place: _Place, wanted: str | None) -> Texts:
    """JSON Lines, line by line; a file that begins with a list, or with an object that its first line does not close,
    as a whole. A number in a column that the recipe names is text as it is spelt."""
    spelt: dict[str, Any] = {"parse_int": str, "parse_float": str} if wanted else {}
    column = Column(wanted)
    with _bytes(path) as file, _lines(file, "utf-8-sig", "\n") as text:
        rows = 0
        for number, line in enumerate(text, 1):
            if line.isspace():
                continue
            place.line = number
            try:
                row = json.loads(line, **spelt)
            except json.JSONDecodeError as error:
                if rows or not _goes_on(line):
                    raise ValueError(f"{error.msg} at column {error.colno}") from error
                values = _whole(line + text.read(), number, place, spelt)
            else:
                values = row if isinstance(row, list) and not rows else [row]
            for row in values:
                where = f"{path}, row {rows}"
                if not isinstance(row, dict):
                    raise ValueError(f"row {rows} is {type(row).__name__}, not an object with columns")
                yield where, column.text(row, where)
                rows += 1
    column.close(str(path))


def _goes_on(line: str) -> bool:
    """Whether a file that begins with this line may be one JSON value over several lines."""
    return line.lstrip()[:1] in ("[", "{") and line.rstrip()[-1:] in ("[", "{", ",", ":")


def _whole(text: str, first: int, place: _Place, spelt: dict[str, Any]) -> list[Any]:
    try:
        value = json.loads(text, **spelt)
    except json.JSONDecodeError as error:
        place.line = first + error.lineno - 1
        raise ValueError(f"{error.msg} at column {error.colno}") from error
    return value if isinstance(value, list) else [value]


def _csv(path: Path, place: _Place, wanted: str | None) -> Texts:
    """Every value is text as it stands; the default column is chosen among those whose first value is not a number."""
    column = Column(wanted)
    rows = 0
    with _bytes(path) as file, _lines(file, "utf-8-sig", "") as text, _long_fields():
        lines = csv.reader(text, delimiter="\t" if suffix(path) == ".tsv" else ",", strict=True)
        header: list[str] = []
        try:
            for values in filter(None, lines):
                if not header:
                    header = values
                    continue
                if len(values) > len(header):
                    raise ValueError(f"{len(values)} values under {len(header)} columns")
                where = f"{path}, row {rows}"
                yield where, column.text(_named(header, values), where, numbers=False)
                rows += 1
        except (csv.Error, ValueError):
            place.line = lines.line_num
            raise
    column.close(str(path))


def _named(header: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    """The first of several columns of one name counts."""
    row: dict[str, str] = {}
    for name, value in zip(header, values):
        row.setdefault(name, value)
    return row


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """``csv`` refuses texts of more than 128 KiB unless it is told otherwise."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, place: _Place, wanted: str | None) -> Texts:
    import pyarrow
    import pyarrow.parquet

    with _bytes(path) as file:
        source = io.BytesIO(file.read()) if path.suffix in OPENERS else file
        table = pyarrow.parquet.ParquetFile(source)
        if table.metadata.num_rows == 0:
            return
        described = {field.name: field.type for field in table.schema_arrow}
        strings = [name for name, kind in described.items() if _is_text(kind)]
        if strings:  # beside a conversation the only string is an id or a title
            strings += [name for name, kind in described.items() if _holds_turns(kind)]
        column = choose(described, strings, wanted, str(path))
        if not _is_text(described[column]) and not wanted:
            raise DataError(f"{path}: column {column!r} holds {described[column]}, not text: choose one with data.text")
        row = 0
        for batch in table.iter_batches(batch_size=ROWS, columns=[column]):
            values = batch.column(0)
            turns = _holds_turns(values.type)
            for value in (values if turns else values.cast(pyarrow.large_string())).to_pylist():
                if turns and value and not is_conversation(value):
                    raise DataError(
                        f"{path}, row {row}: a turn of column {column!r} lacks its role or content - repair it, or "
                        "choose another column with data.text"
                    )
                yield f"{path}, row {row}", (of_turns(value) if turns and value else value) or ""
                row += 1


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _holds_turns(kind: Any) -> bool:
    """Lists of turns, each with ``role`` and ``content``."""
    import pyarrow.types as types

    if not (types.is_list(kind) or types.is_large_list(kind)) or not types.is_struct(kind.value_type):
        return False
    turn = kind.value_type
    fields = {turn.field(index).name: turn.field(index).type for index in range(turn.num_fields)}
    return all(name in fields and _is_text(fields[name]) for name in ("role", "content"))


READERS: dict[str, Callable[..., Texts]] = {"text": _text, "json": _json, "csv": _csv, "parquet": _parquet}
