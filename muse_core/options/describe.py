"""What an options class says about itself: its keys with types, defaults, ranges and help, all read from the class, so
that listing, checking, reference pages and editors' schemas cannot disagree."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import sys
import types
import typing
import weakref
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from muse_core.component import Kind, PathMark
from muse_core.options.ranges import Range, range_of


@attrs.frozen(kw_only=True)
class Option:
    """One key of a table."""

    key: str
    """As a recipe writes it."""
    field: attrs.Attribute
    type: Any
    """Resolved annotation, with extras."""
    doc: str
    """The string under the field; empty when there is none."""
    line: int | None
    """Line of the field in its source file."""
    range: Range
    inline: bool
    """The field's component stands in this very table."""

    @property
    def required(self) -> bool:
        return self.field.default is attrs.NOTHING

    @property
    def default(self) -> Any:
        """The default as the class writes it; ``attrs.NOTHING`` when required."""
        default = self.field.default
        return default.factory() if isinstance(default, attrs.Factory) and not default.takes_self else default


def key_of(field: attrs.Attribute) -> str:
    """Key of a field in a recipe: its name unless the metadata gives another (``from`` is no Python name)."""
    return field.metadata.get("key", field.name)


def is_inline(field: attrs.Attribute) -> bool:
    """Whether the field takes every key of its table that the class does not name itself."""
    return bool(field.metadata.get("inline", False))


@functools.cache
def types_of(options: type) -> Mapping[str, Any]:
    """Field name → resolved annotation. Raises NameError for an annotation that cannot be resolved."""
    return types.MappingProxyType(typing.get_type_hints(options, include_extras=True))


def options_of(options: type) -> tuple[Option, ...]:
    """Every key of an options class, in the order of its fields.

    Raises NameError for an annotation that cannot be resolved.
    """
    hints = types_of(options)
    texts = field_documentation(options)
    return tuple(
        Option(
            key=key_of(field),
            field=field,
            type=hints[field.name],
            doc=texts.get(field.name, ("", None))[0],
            line=texts.get(field.name, ("", None))[1],
            range=range_of(field.validator),
            inline=is_inline(field),
        )
        for field in attrs.fields(options)
    )


def field_documentation(options: type) -> dict[str, tuple[str, int]]:
    """Field name → (the string under it, line in the file), those of base classes included. A class without source
    (made in an interactive session) gives nothing."""
    found: dict[str, tuple[str, int]] = {}
    for cls in reversed(options.__mro__):
        if attrs.has(cls):
            found |= _own_documentation(cls)
    return found


_read: weakref.WeakKeyDictionary[type, dict[str, tuple[str, int]]] = weakref.WeakKeyDictionary()


def _own_documentation(cls: type) -> dict[str, tuple[str, int]]:
    """Read once: a class does not change its source, and plugins are loaded for every recipe that is read."""
    if cls not in _read:
        _read[cls] = _documentation_in_source(cls)
    return _read[cls]


def _documentation_in_source(cls: type) -> dict[str, tuple[str, int]]:
    body = _definition(cls)
    found = {}
    for statement, following in zip(body.body, [*body.body[1:], None]) if body else ():
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = _string(following)
            found[statement.target.id] = (inspect.cleandoc(text) if text else "", statement.lineno)
    return found


def _string(statement: ast.stmt | None) -> str | None:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return statement.value.value if isinstance(statement.value.value, str) else None
    return None


def _definition(cls: type) -> ast.ClassDef | None:
    """The class in its module's source. Not by inspect, which tokenises: 7 ms a class where this takes 1 ms."""
    node: ast.AST | None = _parsed("".join(linecache.getlines(source_file(cls) or "")))
    for name in cls.__qualname__.split("."):
        if name != "<locals>" and node is not None:
            node = _inside(node, name)
    return node if isinstance(node, ast.ClassDef) else None


@functools.lru_cache(maxsize=8)
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _inside(scope: ast.AST, name: str) -> ast.AST | None:
    """The last class or function of this name in a scope, under conditions too."""
    found = None
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found = node if node.name == name else found
        else:
            found = _inside(node, name) or found
    return found


def source_file(cls: type) -> str | None:
    """File of the module that defines a class; None for a class made in an interactive session."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None)


def source_of(options: type) -> tuple[str, int] | None:
    """File and line of a class, or None without source."""
    node = _definition(options)
    file = source_file(options)
    return (file, node.lineno) if node is not None and file is not None else None


def annotation_marker(annotation: Any, of: type) -> Any | None:
    """The first extra of an ``Annotated`` type that is of this class, such as its ``Kind``."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return None
    return next((extra for extra in annotation.__metadata__ if isinstance(extra, of)), None)


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Members of a union; the type itself otherwise."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def article(noun: str) -> str:
    """The indefinite article before a noun."""
    return "an" if noun[0] in "aeiou" else "a"


def type_description(annotation: Any) -> str:
    """A type in words, for help and messages: "a whole number", "a list of filters"."""
    if kind := annotation_marker(annotation, Kind):
        return f"{article(kind.name)} {kind.name}"
    if path := annotation_marker(annotation, PathMark):
        return "a name or a path" if path.or_name else "a path"
    members = [member for member in union_members(annotation) if member is not type(None)]
    if len(members) > 1:
        return " or ".join(type_description(member) for member in members)
    annotation = members[0]
    if annotation_marker(annotation, PathMark):
        return type_description(annotation)
    if typing.get_origin(annotation) is Literal:
        return " or ".join(_literal(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return _spoken_list(typing.get_args(annotation))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        annotation, "a table" if attrs.has(annotation) else str(annotation))


def _literal(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def _spoken_list(members: tuple[Any, ...]) -> str:
    if len(members) == 2 and members[1] is Ellipsis:
        item = type_description(members[0])
        first, _, noun = item.partition(" ")
        return "a list of " + (f"{noun}s" if first in ("a", "an") else item)
    return f"a list of {len(members)}: " + ", ".join(type_description(member) for member in members)
