"""Conditions that span a recipe, asked once every table is sound by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from muse_core.component import Use, provided, required
from muse_core.model.options import StackOptions
from muse_core.model.plan import plan
from muse_core.options.describe import is_inline, key_of
from muse_core.recipe.paths import read_path
from muse_core.recipe.positions import Path
from muse_core.recipe.schema import Recipe


def across(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """(key path, sentence) of every condition that fails: those that components and tables state themselves in
    ``problems(recipe)``, then those of the stack of layers (names, depths, signals)."""
    sound = True
    width = getattr(recipe.model.options, "width", None) or 64
    for path, instance, owner in instances(recipe):
        fault = f" (a fault of {owner})" if owner else ""
        ask: Callable[[Recipe], Iterable[str]] | None = getattr(instance, "problems", None)
        try:
            found = [] if ask is None else [str(what) for what in ask(recipe)]
        except Exception as error:
            found = [f"its problems() raised {type(error).__name__}: {error}{fault}"]
        try:
            required(instance)
            provided(instance, width=width)
        except ValueError as refusal:
            sound = False
            found = found or [str(refusal)]  # sizes that do not fit, which its problems() say as a rule
        except Exception as error:
            sound = False
            found.append(f"asking for its signals raised {type(error).__name__}: {error}{fault}")
        yield from ((path, what) for what in found)
    first: dict[str, int] = {}
    for index, use in enumerate(recipe.monitors):
        if first.setdefault(use.name, index) != index:
            yield (
                ("monitors", index),
                f"monitors[{first[use.name]}] is {use.name!r} too: their numbers and states would stand under one name "
                "- leave one out",
            )
    if sound and isinstance(recipe.model.options, StackOptions):
        for where, what in plan(recipe.model.options).problems:
            yield read_path(where), what


def instances(instance: Any, path: Path = (), owner: str = "") -> Iterator[tuple[Path, Any, str]]:
    """Every attrs instance in a recipe as (path, instance, distribution and version); a component stands for its
    options."""
    yield path, instance, owner
    for field in attrs.fields(type(instance)):
        value = getattr(instance, field.name)
        here = path if is_inline(field) else (*path, key_of(field))
        several = isinstance(value, tuple)
        for index, item in enumerate(value if several else (value,)):
            place = (*here, index) if several else here
            if isinstance(item, Use):
                yield from instances(item.options, place, f"{item.distribution} {item.version}")
            elif attrs.has(type(item)):
                yield from instances(item, place, owner)
