"""``--set a.b=c``: one key at a time, its value written as in TOML; a bare word is text."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from muse_core.errors import RecipeError
from muse_core.recipe.merging import own_keys
from muse_core.recipe.paths import read_path, written
from muse_core.recipe.positions import MAX_BYTES, Path, TooMuch, positions
from muse_core.recipe.source import RecipeText

_BARE_WORD = re.compile(r"[A-Za-z_./~][A-Za-z0-9_./~:@+-]*")
PLACE = "--set"


def override(source: RecipeText, text: str) -> None:
    """Write one override into a source's table and places.

    Tables that are missing on the way are made; a bare component name on the way becomes a table; array items must
    exist. A table without ``use`` changes the keys that it has and leaves the others, one with ``use`` or an empty one
    stands in the place of what the recipe wrote. Another ``use`` drops the options that the recipe wrote for the one
    before, as ``extends`` does. An empty value takes the key out, so that its default holds. Raises RecipeError.
    """
    key, equals, value_text = text.partition("=")
    try:
        if not equals:
            raise ValueError(f"{text[:80]!r} has no '=' - write --set train.steps=100")
        path = read_path(key.strip())
        if path == ("extends",):
            raise ValueError("a recipe says itself what it extends")
        if not value_text.strip():
            unset(source, path)
            return
        value = read_value(value_text)
        for place, one in _changes(source.table, path, value):
            if place[-1] == "use":
                _forget_other_component(source, place[:-1], one)
            _assign(source.table, place, one)
            _forget_places(source, place)
            source.places[place] = (f"{PLACE} {text[:80]}", 0)
    except ValueError as error:
        raise RecipeError(f"{PLACE} {text[:80]}: {error}") from None


def _changes(table: dict[str, Any], path: Path, value: Any) -> list[tuple[Path, Any]]:
    """The keys that an override sets, with their values: those of a table without ``use`` one by one, where the recipe
    writes something at ``path`` already."""
    if not isinstance(value, dict) or not value or "use" in value or not isinstance(_at(table, path), dict | str):
        return [(path, value)]
    return [one for key, inner in value.items() for one in _changes(table, (*path, key), inner)]


def _at(table: dict[str, Any], path: Path) -> Any:
    """What the recipe writes at a path; None where it writes nothing."""
    holder: Any = table
    for step in path:
        if not isinstance(holder, dict if isinstance(step, str) else list):
            return None
        holder = _item(holder, step, path)
    return holder


def unset(source: RecipeText, path: Path) -> None:
    """Take a key out of a source's table. Raises ValueError when the recipe does not write it."""
    holder = _at(source.table, path[:-1])
    if not isinstance(holder, dict) or path[-1] not in holder:
        raise ValueError(f"{written(path)} is not written, so that its default holds already")
    del holder[path[-1]]
    _forget_places(source, path)


def _forget_places(source: RecipeText, path: Path) -> None:
    for known in [known for known in source.places if known[: len(path)] == path]:
        del source.places[known]


def _forget_other_component(source: RecipeText, path: Path, name: Any) -> None:
    """Before another ``use`` is set in the table at ``path``: drop what the recipe wrote for the component before. What
    came by --set stays."""
    holder = _at(source.table, path)
    if not isinstance(holder, dict) or holder.get("use", name) == name:
        return
    kept = own_keys(path)
    for key in [key for key in holder if key not in kept]:
        if not source.place((*path, key))[0].startswith(PLACE):
            del holder[key]
            _forget_places(source, (*path, key))


def read_value(text: str) -> Any:
    """A TOML value; a bare word is text. Raises ValueError."""
    stripped = text.strip()
    if len(stripped.encode()) > MAX_BYTES:
        raise ValueError(f"the value is longer than {MAX_BYTES // 1024} KiB")
    line = f"value = {stripped}"
    try:
        positions(line)
        table = tomllib.loads(line)
    except TooMuch:
        raise
    except ValueError:
        if _BARE_WORD.fullmatch(stripped):
            return stripped
        raise ValueError(
            f"{stripped[:40]!r} is not a TOML value - text with spaces or signs needs quotes, as in '\"...\"'"
        ) from None
    if set(table) != {"value"}:
        raise ValueError("one value at a time - repeat --set for another key")
    return table["value"]


def _assign(table: dict[str, Any], path: Path, value: Any) -> None:
    """Walk to the parent of ``path``, then set."""
    holder: Any = table
    for depth, (step, following) in enumerate(zip(path, path[1:])):
        here = path[: depth + 1]
        inner = _item(holder, step, here)
        if isinstance(inner, str) and isinstance(following, str):
            inner = {"use": inner}
        elif inner is None and isinstance(following, str):
            inner = {}
        _require(inner, following, here)
        holder[step] = inner
        holder = inner
    _item(holder, path[-1], path)
    holder[path[-1]] = value


def _item(holder: Any, step: str | int, here: Path) -> Any:
    if isinstance(step, str):
        return holder.get(step)
    if step >= len(holder):
        raise ValueError(f"{written(here)} does not exist: the list has {len(holder)} items, numbered from 0")
    return holder[step]


def _require(inner: Any, following: str | int, here: Path) -> None:
    if isinstance(following, int) and not isinstance(inner, list):
        raise ValueError(f"{written(here)} is not a list that the recipe writes")
    if isinstance(following, str) and not isinstance(inner, dict):
        raise ValueError(f"{written(here)} is not a table")
