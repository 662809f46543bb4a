"""Recipes of format 1 in today's names: components that were renamed, with what depends on their names kept.

Works on plain tables before they are checked, so that every message speaks of names that exist. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from muse_core.errors import RecipeError
from muse_core.kinds import NAMESPACE, ROWS
from muse_core.plugins.registry import Registry
from muse_core.recipe.paths import written
from muse_core.recipe.positions import Path
from muse_core.recipe.source import RecipeText

FORMAT = 2
"""Format of recipes that this version writes."""

KIND_OF_KEY = {row.key: NAMESPACE[row.name] for row in ROWS}
"""Key of a table or list of tables → kind of the component that stands there."""

Renames = dict[tuple[str, str], str]


@attrs.frozen
class Renamed:
    """A former name that a recipe uses."""

    path: Path
    """Of the component: a name, or a table with ``use``."""
    former: str
    name: str
    keeps_name: bool
    """A layer that said no ``name`` of its own: it keeps the former one."""
    bare: bool
    """Written as a name, not as a table with ``use``."""

    def __str__(self) -> str:
        where = written(self.path)
        return f"{where}: {self.former!r} is now called {self.name!r} - muse recipe upgrade rewrites a recipe"


def upgraded(table: Mapping[str, Any], registry: Registry) -> tuple[dict[str, Any], tuple[Renamed, ...]]:
    """The table with today's names, and every former name that it used.

    A layer keeps its former name as its own ``name``, so that its parameters, their initial values and its numbers in
    the records stay what they were.
    """
    renames: Renames = {
        (NAMESPACE[row.kind], former): row.name for row in registry.rows() for former in row.component.former_names
    }
    found: list[Renamed] = []
    result = _table(table, (), renames, found)
    if result.get("format") == 1:
        result["format"] = FORMAT
    return result, tuple(found)


def upgraded_text(source: RecipeText, changes: tuple[Renamed, ...]) -> str:
    """The file with today's names, comments and layout kept. Raises RecipeError for a name that stands in another file
    or is written in a way that cannot be found on its line."""
    lines = source.text.split("\n")
    for change in sorted(changes, key=lambda one: -source.place(one.path)[1]):
        file, number = source.place((*change.path, "use"))
        if file != source.where:
            raise RecipeError(f"{change} stands in {file}: upgrade that file first")
        lines[number - 1] = _rewritten(lines[number - 1], change, f"{file}:{number}")
    text = re.sub(r"(?m)^format\s*=\s*1\b", f"format = {FORMAT}", "\n".join(lines), count=1)
    return text


def _rewritten(line: str, change: Renamed, where: str) -> str:
    quoted = rf"""(?P<quote>["']){re.escape(change.former)}(?P=quote)"""
    keep = f'name = "{change.former}"' if change.keeps_name else ""
    if change.bare:
        pattern = rf"(?<!=)(?<!= ){quoted}"
        new = f'{{ use = "{change.name}", {keep} }}' if keep else f'"{change.name}"'
    else:
        pattern, new = rf"\buse\s*=\s*{quoted}", f'use = "{change.name}"'
        alone = re.fullmatch(rf"(?P<indent>\s*){pattern}(?P<rest>\s*(?:#.*)?)", line)
        if alone and keep:
            return f"{alone['indent']}{new}{alone['rest']}\n{alone['indent']}{keep}"
        new += f", {keep}" if keep else ""
    rewritten, found = re.subn(pattern, new, line, count=1)
    if not found:
        raise RecipeError(f"{where}: {change.former!r} does not stand on this line - change it by hand")
    return rewritten


def _table(table: Mapping[str, Any], path: Path, renames: Renames, found: list[Renamed]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in table.items():
        kind = KIND_OF_KEY.get(key) if isinstance(key, str) else None
        here = (*path, key)
        if isinstance(value, list):
            result[key] = [_value(item, (*here, index), kind, renames, found) for index, item in enumerate(value)]
        else:
            result[key] = _value(value, here, kind, renames, found)
    return result


def _value(value: Any, path: Path, kind: str | None, renames: Renames, found: list[Renamed]) -> Any:
    if isinstance(value, str) and kind is not None:
        name = renames.get((kind, value))
        if name is None:
            return value
        found.append(Renamed(path, value, name, kind == "layer", True))
        return {"use": name, "name": value} if kind == "layer" else name
    if not isinstance(value, Mapping):
        return value
    table = _table(value, path, renames, found)
    former = table.get("use")
    if kind is not None and isinstance(former, str) and (name := renames.get((kind, former))):
        found.append(Renamed(path, former, name, kind == "layer" and "name" not in table, False))
        table["use"] = name
        if kind == "layer":
            table.setdefault("name", former)
    return table

