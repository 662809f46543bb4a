"""Writes a table as TOML and reads it back: what is on disk is what was meant."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import toml

from muse_core.errors import RecipeError
from muse_core.recipe.paths import written
from muse_core.recipe.positions import Path
from muse_core.recipe.words import has_control_characters


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML text of a table of tables, lists, text, numbers and truth values.

    None and empty tables are dropped, since TOML has no None and ``toml`` loses empty tables within lists. Raises
    RecipeError for what TOML cannot say, and AssertionError when the text would not read back as it was meant.
    """
    normal = normalised(table)
    encoder = toml.TomlEncoder()
    encoder.dump_funcs[str] = quoted  # toml's own writes C:\\x41 as an escape that no parser accepts
    encoder.dump_funcs[float] = repr
    text = toml.dumps(normal, encoder=encoder)
    assert _typed(tomllib.loads(text)) == _typed(normal), "written TOML does not read back equal"
    return text


def normalised(value: Any, path: Path = ()) -> Any:
    """The table without None and empty tables, lists with items of one type. Raises RecipeError for anything else."""
    if isinstance(value, Mapping):
        for key in value:
            if has_control_characters(key) or "\\x" in key:  # toml writes neither rightly in a key
                raise RecipeError(f"{written((*path, key))}: a key with control characters or \\x cannot be written")
        items = {key: normalised(item, (*path, key)) for key, item in value.items() if item is not None}
        return {key: item for key, item in items.items() if item != {} or not isinstance(item, dict)}
    if isinstance(value, list | tuple):
        return _homogeneous([normalised(item, (*path, index)) for index, item in enumerate(value)], path)
    if isinstance(value, str):
        if has_control_characters(value):
            raise RecipeError(f"{written(path)}: text with control characters cannot be written")
        return value
    if isinstance(value, bool | int | float):
        return value
    raise RecipeError(f"{written(path)}: {type(value).__name__} cannot be written in a recipe")


def quoted(text: str) -> str:
    """A TOML basic string."""
    import json

    return json.dumps(text, ensure_ascii=False)


def _homogeneous(items: list[Any], path: Path) -> list[Any]:
    if any(isinstance(item, dict) for item in items):
        items = [{"use": item} if isinstance(item, str) else item for item in items]
    kinds = {type(item) for item in items}
    if kinds == {int, float}:
        return [float(item) for item in items]
    if len(kinds) > 1 or list in kinds:
        raise RecipeError(f"{written(path)}: a list must hold items of one type, and no lists")
    return items


def _typed(value: Any) -> Any:
    """The value with the types that ``==`` overlooks (1, 1.0 and true are equal to it)."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return type(value), value
