"""What an options class must be before a recipe may use it: checked when plugins are listed."""

from __future__ import annotations

import typing
from typing import Any, Literal

import attrs

from muse_core.component import Kind, Use
from muse_core.kinds import NAMESPACE
from muse_core.options.describe import (
    annotation_marker,
    field_documentation,
    key_of,
    type_description,
    types_of,
    union_members,
)

SCALARS = (bool, int, float, str)

AROUND: dict[str, frozenset[str]] = {
    "layer": frozenset({"at", "name"}),
    "initializer": frozenset({"match"}),
    "source": frozenset({
        "tokenizer", "order", "reset_at_documents", "validation", "test", "split_seed", "cache", "near_duplicates",
    }),
}
"""Namespace → keys of the table in which such a component stands inline; a test compares them with the schema."""


def structural_faults(options: Any) -> list[str]:
    """What keeps a recipe from filling this class; empty when nothing does."""
    if not isinstance(options, type) or not attrs.has(options):
        return [f"options {options!r} is not an attrs class"]
    label = options.__name__
    if not _is_frozen(options):
        return [f"{label} is not frozen: decorate it with @attrs.frozen(kw_only=True)"]
    try:
        hints = types_of(options)
    except (NameError, SyntaxError, TypeError) as error:
        return [f"{label} has an annotation that cannot be resolved: {error}"]
    faults = []
    for field in attrs.fields(options):
        where = f"{label}.{field.name}"
        if not field.kw_only:
            faults.append(f"{where} is not keyword-only: decorate {label} with @attrs.frozen(kw_only=True)")
        if field.name not in hints:
            faults.append(f"{where} has no type: write {field.name}: {_type_meant(field.default)} = …")
            continue
        if fault := type_fault(hints[field.name]):
            faults.append(f"{where}: {fault}")
        if type(None) in union_members(hints[field.name]) and field.default not in (None, attrs.NOTHING):
            faults.append(f"{where} may be None, so its default must be None: TOML cannot write None")
        if key_of(field) == "use":
            faults.append(f"{where}: the key 'use' names the component itself")
    return faults


def _type_meant(default: Any) -> str:
    """The type that a field without one probably has."""
    return type(default).__name__ if type(default) in SCALARS else "TYPE"


def placement_faults(options: type, kind: str) -> list[str]:
    """Options that a recipe cannot reach, since the table around the component has the same key."""
    taken = AROUND.get(NAMESPACE[kind], frozenset())
    return [
        f"{options.__name__}.{field.name}: the key {key_of(field)!r} belongs to the table around the {kind}"
        for field in attrs.fields(options) if key_of(field) in taken
    ]


def _is_frozen(options: type) -> bool:
    try:
        object.__new__(options).anything = None
    except attrs.exceptions.FrozenInstanceError:
        return True
    except AttributeError:
        return False
    return False


def documentation_faults(options: type) -> list[str]:
    """Help that is missing; the component still works."""
    label = options.__name__
    faults = [] if (options.__doc__ or "").strip() else [f"{label} has no docstring"]
    texts = field_documentation(options)
    bare = [field.name for field in attrs.fields(options) if not texts.get(field.name, ("", 0))[0]]
    if bare:
        faults.append(f"{label} has options without a string under them: {', '.join(bare)}")
    return faults


def type_fault(annotation: Any, *, within_list: bool = False) -> str | None:
    """Why a recipe cannot hold values of this type; None when it can."""
    if annotation_marker(annotation, Kind):
        return None
    if typing.get_origin(annotation) is typing.Annotated:
        return type_fault(annotation.__origin__, within_list=within_list)
    if annotation is Use:
        return "says no kind: write UseLayer, UseFilter or another of muse_core.component"
    if annotation in SCALARS or annotation is type(None):
        return None
    if typing.get_origin(annotation) is Literal:
        return None
    members = union_members(annotation)
    if len(members) > 1:
        return next((fault for member in members if (fault := type_fault(member, within_list=within_list))), None)
    if typing.get_origin(annotation) is tuple:
        if within_list:
            return "lists within lists are not for recipes"
        inner = [member for member in typing.get_args(annotation) if member is not Ellipsis]
        return next((fault for member in inner if (fault := type_fault(member, within_list=True))), None)
    if isinstance(annotation, type) and attrs.has(annotation):
        return next(iter(structural_faults(annotation)), None)
    allowed = "bool, int, float, str, Literal, a tuple or a component"
    return f"{type_description(annotation)} is not a valid type for a recipe: use {allowed}"
