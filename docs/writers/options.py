"""The options of a class as Markdown: type, range, default and help of each."""

from __future__ import annotations

from typing import Any

import attrs

from muse_core.component import Kind
from muse_core.options.describe import Option, annotation_marker, options_of, type_description, union_members

from .prose import plain, prose


def options_section(cls: type, page: str, *, level: int = 3, prefix: str = "") -> str:
    """A heading and a paragraph for every key that the table of ``cls`` has of its own."""
    shown = [option for option in options_of(cls) if not option.inline]
    return "\n\n".join(_option(option, page, "#" * level, prefix) for option in shown)


def _option(option: Option, page: str, marks: str, prefix: str) -> str:
    facts = [_kind(option)]
    if limits := spoken_range(option):
        facts.append(limits)
    facts.append("required" if option.required else f"default `{toml_value(option.default)}`")
    line = "; ".join(fact if "`" in fact else plain(fact, page) for fact in facts)
    anchor = f" {{ #{prefix}{option.key} }}" if prefix else ""
    return f"{marks} `{option.key}`{anchor}\n\n{line}\n{{ .option }}\n\n{prose(option.doc, page)}"


def spoken_range(option: Option) -> str:
    """What a value must satisfy, a pattern as code."""
    words, form, pattern = str(option.range).partition("of the form ")
    return f"{words}{form}`{pattern}`" if form else words


def _kind(option: Option) -> str:
    words = type_description(option.type)
    absent = type(None) in union_members(option.type) and not annotation_marker(option.type, Kind)
    return f"{words}, or left out" if absent else words


def toml_value(value: Any) -> str:
    """A default as a recipe would write it; ``none`` is what leaving a key out means."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        inside = ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    assert not attrs.has(type(value)), "a default is written as a recipe would write it"
    return repr(value)
