"""One component on a page: what it is, where it comes from, and every option."""

from __future__ import annotations

import inspect
from typing import Any

from muse_core.cli.printed import paragraph
from muse_core.options.describe import Option, options_of, source_of, type_description
from muse_core.plugins import Registered

WIDEST = 100
INDENT = 6 * " "


def as_data(row: Registered) -> dict[str, Any]:
    """The page for programs."""
    return {
        "kind": row.kind,
        "name": row.name,
        "help": inspect.cleandoc(row.component.options.__doc__ or ""),
        "distribution": row.distribution,
        "version": row.version,
        "entry_point": row.entry_point,
        "implementation": row.component.implementation,
        "source": _place(row.component.options),
        "options": [_option(option, row) for option in options_of(row.component.options)],
    }


def as_text(row: Registered) -> str:
    """The page for people."""
    page = as_data(row)
    lines = [
        f"{page['name']} ({page['kind']}) from {page['distribution']} {page['version']}",
        *filter(None, [paragraph(page["help"], most=WIDEST)]),
        f"options: {page['source']}",
        f"implementation: {page['implementation']}",
    ]
    for option in page["options"]:
        value = "required" if option["required"] else f"default {_toml(option['default'])}"
        limits = f", {option['range']}" if option["range"] else ""
        told = f"{option['key']}: {option['type']}{limits}; {value}"
        lines += ["", paragraph(told, first="  ", rest=INDENT, most=WIDEST)]
        lines += filter(None, [paragraph(option["help"], first=INDENT, rest=INDENT, most=WIDEST)])
        lines += [f"      {option['source']}"] if option["source"] else []
    return "\n".join(lines)


def _option(option: Option, row: Registered) -> dict[str, Any]:
    place = source_of(row.component.options)
    return {
        "key": option.key,
        "type": type_description(option.type),
        "required": option.required,
        "default": None if option.required else _plain(option.default),
        "range": str(option.range),
        "help": option.doc,
        "source": f"{place[0]}:{option.line}" if place and option.line else "",
    }


def _plain(default: Any) -> Any:
    if isinstance(default, list | tuple):
        return [_plain(item) for item in default]
    return default if isinstance(default, bool | int | float | str | dict | None) else repr(default)


def _place(options: type) -> str:
    place = source_of(options)
    return f"{place[0]}:{place[1]}" if place else ""


def _toml(value: Any) -> str:
    """A default as a recipe would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return f'"{value}"' if isinstance(value, str) else str(value)
