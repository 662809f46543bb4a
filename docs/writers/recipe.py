"""The tables of a recipe, read from ``muse_core.recipe.schema``."""

from __future__ import annotations

import posixpath
import typing

import attrs

from muse_core.component import Kind
from muse_core.options.describe import annotation_marker, options_of, union_members
from muse_core.recipe.schema import Recipe

from .components import kind_page
from .options import options_section, spoken_range, toml_value
from .prose import link, plain, prose

PAGE = "reference/recipe.md"
NESTED = "## `{head}`"


def pages() -> dict[str, str]:
    parts = [
        "# The recipe",
        "Every table and key, with defaults. What a component adds to its table stands on "
        f"[its own page]({link(PAGE, 'reference/components/index.md')}); the "
        f"[guide]({link(PAGE, 'guide/recipes.md')}) says how the tables work together, and `muse recipe schema` "
        "writes the same as JSON Schema.",
        "## Top level",
        *_keys(Recipe),
    ]
    for option in options_of(Recipe):
        for table in (arm for one in union_members(option.type) for arm in _tables(one)):
            many = typing.get_origin(option.type) is tuple
            head = f"[[{option.key}]]" if many else f"[{option.key}]"
            parts += [NESTED.format(head=head), prose(table.__doc__, PAGE), *_component(table), options_section(
                table, PAGE, prefix=f"{option.key}.")]
            parts += _choices(table, option.key)
    return {PAGE: "\n\n".join(parts)}


def _keys(cls: type) -> list[str]:
    """The keys of the top level that are no tables of the core's own, and links to those that are components."""
    lines = []
    for option in options_of(cls):
        if any(_tables(arm) for arm in union_members(option.type)):
            continue
        kind = _kind(option.type)
        what = f"[a {kind}]({link(PAGE, kind_page(kind))})" if kind else ""
        what = f"several: {what}" if kind and typing.get_origin(option.type) is tuple else what
        default = "required" if option.required else f"default `{toml_value(option.default)}`"
        facts = "; ".join(part for part in (what, spoken_range(option), default) if part)
        lines.append(f"### `{option.key}` {{ #{option.key} }}\n\n{facts}\n{{ .option }}\n\n{prose(option.doc, PAGE)}")
    return lines


def _kind(annotation: object) -> str | None:
    for one in (annotation, *typing.get_args(annotation)):
        if kind := annotation_marker(one, Kind):
            return kind.name
    return None


def _tables(annotation: object) -> list[type]:
    """The core's own classes of an annotation: ``Train`` of ``Train``, ``Matched`` of ``tuple[Matched, ...]``."""
    if annotation_marker(annotation, Kind):
        return []
    return [one for one in (annotation, *typing.get_args(annotation)) if isinstance(one, type) and attrs.has(one)]


def _component(table: type) -> list[str]:
    """The component whose options stand in the table itself."""
    found = []
    for option in options_of(table):
        if option.inline and (kind := _kind(option.type)):
            default = "" if option.required else f", default `{toml_value(option.default)}`"
            target = link(PAGE, posixpath.dirname(kind_page(kind)) + "/index.md")
            found.append(f"`use` names [a {kind}]({target}){default}. {plain(option.doc, PAGE)}")
    return found


def _choices(table: type, key: str) -> list[str]:
    """Where the components stand that its keys choose by ``use``."""
    parts = []
    for option in options_of(table):
        if not option.inline and (kind := _kind(option.type)):
            target = link(PAGE, kind_page(kind))
            parts.append(f"What `{key}.{option.key}` may name, with the options of each: [{kind}]({target}).")
    return parts
