"""A checked recipe written out in full: every default filled, every component a table."""

from __future__ import annotations

import typing
from typing import Any

import attrs

from muse_core.component import Use
from muse_core.options.describe import is_inline, key_of, types_of, union_members
from muse_core.plugins import Registry


def as_table(instance: Any, registry: Registry) -> dict[str, Any]:
    """The table that gives this instance when it is checked again. Keys without a value (None) are left out."""
    hints = types_of(type(instance))
    table: dict[str, Any] = {}
    for field in attrs.fields(type(instance)):
        value = _plain(getattr(instance, field.name), hints[field.name], registry)
        if is_inline(field):
            table = {**value, **table}
        elif value is not None:
            table[key_of(field)] = value
    return table


def _plain(value: Any, annotation: Any, registry: Registry) -> Any:
    if isinstance(value, Use):
        return {"use": _reference(value, registry), **as_table(value.options, registry)}
    if isinstance(value, tuple):
        return [_plain(item, _item_type(annotation), registry) for item in value]
    if attrs.has(type(value)):
        return as_table(value, registry)
    return value


def _reference(use: Use, registry: Registry) -> str:
    """How the table names a component. That of a run is read with the distributions that made it preferred, by which a
    bare name may mean one of several: there the run's own spelling stays, so that it is still what its lock says."""
    if use.qualified and registry.preferred:
        return f"{use.name}@{use.distribution}"
    return registry.reference(use.kind, use.name, use.distribution)


def _item_type(annotation: Any) -> Any:
    for member in union_members(annotation):
        if typing.get_origin(member) is tuple:
            return typing.get_args(member)[0]
    return Any
