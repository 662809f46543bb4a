"""JSON Schema (draft 7, which editors' TOML plugins read) of recipes with the installed components."""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal

import attrs

from muse_core.component import Kind
from muse_core.kinds import NAMESPACE
from muse_core.options.describe import Option, annotation_marker, options_of, union_members
from muse_core.options.ranges import Range
from muse_core.plugins import Registered, Registry
from muse_core.recipe.schema import Recipe

SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean"}


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """Schema of one recipe file. What needs more than one key to judge (signals, periods) is left to
    ``muse recipe check``."""
    writer = _Writer(registry)
    body = writer.table(Recipe)
    body["properties"]["extends"] = {"type": "string", "description": "Recipe that this one is laid over."}
    # A recipe that extends another may leave to it what is required here.
    required = body.pop("required", [])
    body["anyOf"] = [{"required": ["extends"]}, {"required": required}]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "MUSE recipe",
        **body,
        "definitions": writer.definitions,
    }


class _Writer:
    def __init__(self, registry: Registry):
        self.registry = registry
        self.definitions: dict[str, Any] = {}

    def table(self, cls: type, *, inside: dict[str, Any] | None = None, required: tuple[str, ...] = ()) -> dict:
        """A table of ``cls``; ``inside`` are properties that stand in the same table."""
        described = options_of(cls)
        inline = next((option for option in described if option.inline), None)
        properties = {option.key: self.option(option) for option in described if not option.inline}
        needed = [option.key for option in described if option.required and not option.inline]
        if inline is not None:
            kind = annotation_marker(inline.type, Kind).name
            return self.chosen(kind, inline, properties, tuple(needed))
        return {
            "type": "object",
            "description": inspect.cleandoc(cls.__doc__ or ""),
            "properties": {**(inside or {}), **properties},
            "required": [*required, *needed],
            "additionalProperties": False,
        }

    def option(self, option: Option) -> dict[str, Any]:
        """Schema of one key, with its help, range and default."""
        schema = self.of_type(option.type, option)
        if "type" in schema:
            schema |= _limits(option.range, schema["type"])
        if option.doc:
            schema["description"] = option.doc
        if not option.required and _is_plain(option.default):
            schema["default"] = option.default
        return schema

    def of_type(self, annotation: Any, option: Option | None = None) -> dict[str, Any]:
        if kind := annotation_marker(annotation, Kind):
            return self.chosen(kind.name, option, {}, ())
        members = [member for member in union_members(annotation) if member is not type(None)]
        if len(members) > 1:
            return {"anyOf": [self.of_type(member) for member in members]}
        annotation = members[0]
        if typing.get_origin(annotation) is typing.Annotated:
            return self.of_type(annotation.__origin__, option)
        if typing.get_origin(annotation) is Literal:
            return {"enum": list(typing.get_args(annotation))}
        if typing.get_origin(annotation) is tuple:
            return self.list_of(typing.get_args(annotation))
        if attrs.has(annotation):
            return self.table(annotation)
        return {"type": SCALARS[annotation]}

    def list_of(self, members: tuple[Any, ...]) -> dict[str, Any]:
        item = self.of_type(members[0])
        if len(members) == 2 and members[1] is Ellipsis:
            many = {"type": "array", "items": item}
            return {"anyOf": [many, item]} if annotation_marker(members[0], Kind) else many
        return {"type": "array", "items": [self.of_type(one) for one in members],
                "minItems": len(members), "maxItems": len(members)}

    def chosen(self, kind: str, option: Option | None, own: dict[str, Any], needed: tuple[str, ...]) -> dict:
        """A component of a kind: its bare name, or a table; ``own`` are the keys of the table around it."""
        default = option.default if option is not None and not option.required else None
        rows = [row for row in self.registry.rows() if kind in (row.kind, NAMESPACE[row.kind])]
        bare = [self.spelt(row) for row in rows] if not needed else []
        tables = [self.component(row, own, needed, default == row.name) for row in rows]
        if not rows:  # nothing of the kind is installed, so that nothing fits
            return {"not": {}}
        return {"anyOf": [*([{"enum": bare}] if bare else []), *tables]}

    def component(self, row: Registered, own: dict[str, Any], needed: tuple[str, ...], default: bool) -> dict:
        variant = ("-in-place" if own else "") + ("-by-default" if default else "")
        label = f"{row.kind}-{row.distribution}-{row.name}{variant}".replace(" ", "-")
        if label not in self.definitions:
            self.definitions[label] = {}  # a component may nest its own kind
            self.definitions[label] |= self.named(self.spelt(row), row.component.options, row.name, own, default)
            self.definitions[label]["required"] += needed
        return {"$ref": f"#/definitions/{label}"}

    def named(self, name: str, cls: type, label: str, own: dict[str, Any], default: bool) -> dict[str, Any]:
        use = {"use": {"const": name, "description": inspect.cleandoc(cls.__doc__ or label)}}
        return self.table(cls, inside={**use, **own}, required=() if default else ("use",))

    def spelt(self, row: Registered) -> str:
        return self.registry.reference(row.kind, row.name, row.distribution)


def _limits(range_: Range, kind: str) -> dict[str, Any]:
    shortest, longest = ("minLength", "maxLength") if kind == "string" else ("minItems", "maxItems")
    found = {
        "minimum": range_.at_least,
        "exclusiveMinimum": range_.more_than,
        "maximum": range_.at_most,
        "exclusiveMaximum": range_.less_than,
        shortest: range_.min_length,
        longest: range_.max_length,
        "pattern": f"^(?:{range_.pattern})$" if range_.pattern is not None else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)
