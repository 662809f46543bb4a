"""``extends``: how a recipe's table is laid over the one that it extends."""

from __future__ import annotations

from typing import Any

import attrs

from muse_core.options.describe import is_inline, key_of, types_of
from muse_core.recipe.positions import Path
from muse_core.recipe.schema import Recipe
from muse_core.recipe.source import Places


def merge(base: dict[str, Any], base_places: Places, over: dict[str, Any], over_places: Places) -> tuple[dict, Places]:
    """``over`` laid on ``base``: tables merge key by key, everything else replaces, arrays as a whole.

    A table that names another ``use`` drops the base's options, which belong to another component; keys that the table
    has whatever the component (``data.tokenizer``) stay.
    """
    gone: set[Path] = set()
    table = _merge(base, over, (), gone)
    kept = {
        path: place for path, place in base_places.items()
        if not any(path[:length] in gone for length in range(1, len(path) + 1))
    }
    return table, kept | over_places


def _merge(base: dict[str, Any], over: dict[str, Any], path: Path, gone: set[Path]) -> dict[str, Any]:
    table = dict(base)
    if "use" in over and base.get("use") != over["use"]:
        kept = own_keys(path)
        for key in base:
            if key not in kept and key not in over:
                del table[key]
                gone.add((*path, key))
    for key, value in over.items():
        below = table.get(key)
        if isinstance(value, dict) and isinstance(below, str) and "use" not in value:
            below = {"use": below}
        if isinstance(value, dict) and isinstance(below, dict):
            table[key] = _merge(below, value, (*path, key), gone)
        else:
            table[key] = value
            gone.add((*path, key))
    return table


def own_keys(path: Path) -> set[str]:
    """Keys of a table of the schema that do not belong to the component named in it."""
    cls: Any = Recipe
    for step in path:
        cls = types_of(cls).get(step) if attrs.has(cls) else None
    if not attrs.has(cls) or not any(is_inline(field) for field in attrs.fields(cls)):
        return set()
    return {key_of(field) for field in attrs.fields(cls) if not is_inline(field)}
