"""TOML files and ``--set`` to one plain table that remembers where each key came from."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path as FilePath

from muse_core.errors import RecipeError
from muse_core.recipe.merging import merge
from muse_core.recipe.overrides import override, unset
from muse_core.recipe.paths import read_path
from muse_core.recipe.positions import MAX_BYTES, TooMuch, positions
from muse_core.recipe.source import RecipeText
from muse_core.recipe.words import has_control_characters

MAX_EXTENDS = 8
"""Recipes in one chain of ``extends``."""


def read_source(file: str | os.PathLike[str], overrides: Iterable[str] = ()) -> RecipeText:
    """Read a recipe with everything that it extends, then apply the overrides.

    Raises RecipeError for a file that cannot be read, is too big or is not TOML.
    """
    return overridden(_read_chain(os.fspath(file), ()), overrides)


def overridden(source: RecipeText, overrides: Iterable[str]) -> RecipeText:
    """The source with ``--set`` overrides written into its table. Raises RecipeError with every one that is wrong."""
    problems: list[str] = []
    for text in overrides:
        try:
            override(source, text)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return source


def _read_chain(file: str, above: tuple[str, ...]) -> RecipeText:
    source = parse(_read_text(file), file)
    base = source.table.pop("extends", None)
    gone = source.table.pop("unset", [])
    if not isinstance(gone, list) or not all(isinstance(key, str) for key in gone):
        raise RecipeError(f"{source.locate(('unset',))}: unset: must be a list of keys, as [\"train.max_seconds\"]")
    if base is None:
        if gone:
            raise RecipeError(f"{source.locate(('unset',))}: unset: takes out keys of the recipe that this one extends")
        return source
    place = source.locate(("extends",))
    if not isinstance(base, str) or not base:
        raise RecipeError(f"{place}: extends: must be the path of a recipe, as text")
    if has_control_characters(base):
        raise RecipeError(f"{place}: extends: must be a path without control characters")
    above = (*above, os.path.realpath(file))
    base_file = os.path.normpath(os.path.join(os.path.dirname(file), base))
    if os.path.realpath(base_file) in above:
        raise RecipeError(f"{place}: extends: {base_file} extends this recipe in turn")
    if len(above) == MAX_EXTENDS:
        raise RecipeError(f"{place}: extends: a chain of more than {MAX_EXTENDS} recipes")
    try:
        below = _read_chain(base_file, above)
    except RecipeError as error:
        raise RecipeError([f"{place}: extends: {problem}" for problem in error.problems]) from None
    for key in gone:
        try:
            unset(below, read_path(key))
        except ValueError as error:
            raise RecipeError(f"{source.locate(('unset',))}: unset: {error}") from None
    table, places = merge(below.table, below.places, source.table, source.places)
    return RecipeText(table, source.where, places, source.text)


def parse(text: str, where: str) -> RecipeText:
    """A table from TOML text. Raises RecipeError with the line of the error."""
    try:
        lines = positions(text)
    except TooMuch as error:
        raise RecipeError(f"{where}:{error.line}: {error}") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(_syntax(str(error), where, text)) from None
    except (ValueError, RecursionError) as error:  # a number too long for int(), a date such as 2024-99-99
        raise RecipeError(f"{where}: not valid TOML: {error}") from None
    places = {path: (where, line) for path, line in lines.items()}
    return RecipeText(table, where, places, text)


_ADVICE = {
    "Cannot overwrite a value": "this key stands twice",
    "Cannot declare": "this table stands twice",
    "Invalid value": "a value is missing or misspelt; text needs quotes",
    "Illegal character '\\n'": "text must close its quote on the line where it opens",
    "Expected '=' after a key": "a key needs = and a value; a table stands in [ ]",
    "Expected newline or end of document": "one key and value per line",
}
"""Beginning of tomllib's message → what it comes down to."""


def _syntax(message: str, where: str, text: str) -> str:
    match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if match is None:
        return f"{where}: not valid TOML: {message}"
    line = match[1] or text.rstrip("\n").count("\n") + 1
    column = f", column {match[2]}" if match[2] else ", at the end of the file"
    advice = next((f" - {advice}" for start, advice in _ADVICE.items() if message.startswith(start)), "")
    return f"{where}:{line}: not valid TOML: {message[: match.start()]}{column}{advice}"


def _read_text(file: str) -> str:
    try:
        with open(file, "rb", opener=_open_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise RecipeError(f"{file}: not a file; a recipe is one TOML file")
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{file}: no such file{_neighbours(file)}") from None
    except IsADirectoryError:
        raise RecipeError(f"{file}: a directory; a recipe is one TOML file{_inside(file)}") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file!r}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{file}: more than {MAX_BYTES // 1024} KiB; a recipe is a small text")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{file}:{line}: not UTF-8 text; is this a recipe?") from None


def _open_without_waiting(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_NONBLOCK)  # a named pipe must not hang the command


def _neighbours(file: str) -> str:
    from muse_core.plugins.near import near

    folder = FilePath(file).parent
    known = {one.stem: str(one) for one in sorted(folder.glob("*.toml"))[:200]} if folder.is_dir() else {}
    close = near(FilePath(file).stem, known)
    return f" - did you mean {known[close]}?" if close else ""


def _inside(folder: str) -> str:
    own = FilePath(folder) / "recipe.toml"
    if (FilePath(folder) / "muse.lock.toml").is_file():
        return f"; this one holds a run - its recipe is {own}, and --resume goes on with it"
    known = [str(one) for one in sorted(FilePath(folder).glob("*.toml"))[:5]]
    return f", such as {', '.join(known)}" if known else ""
