"""A plain table to attrs instances by cattrs, strictly, collecting every problem with its key path.

A hook receives a :class:`Node`, which knows its place in the recipe; it returns the value, or reports what is wrong and
raises InvalidValue so that its parent goes on with the other keys.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs
import cattrs

from muse_core.component import Kind, PathMark, Use
from muse_core.kinds import NAMESPACE
from muse_core.options.describe import (
    annotation_marker,
    article,
    is_inline,
    key_of,
    type_description,
    types_of,
    union_members,
)
from muse_core.plugins import UnknownComponent
from muse_core.plugins.discovery import CORE
from muse_core.plugins.near import near, suggestion
from muse_core.recipe.nodes import ABSENT, InvalidValue, Node
from muse_core.recipe.paths import written
from muse_core.recipe.positions import Path
from muse_core.recipe.scalars import literal, local_path, number, text, truth, whole
from muse_core.recipe.schema import Recipe
from muse_core.recipe.validation import construct, faults_of
from muse_core.recipe.words import shown


def make_converter() -> cattrs.Converter:
    """A converter whose ``structure(node, type)`` is strict about every type that options may have."""
    converter = cattrs.Converter()
    for scalar, hook in ((int, whole), (float, number), (str, text), (bool, truth)):
        converter.register_structure_hook(scalar, hook)

    def tuple_of(node: Node, annotation: Any) -> tuple:
        return _list(converter, node, annotation)

    def one_of(node: Node, annotation: Any) -> Any:
        return _union(converter, node, annotation)

    def table(node: Node, cls: type) -> Any:
        label = _label(node.path, cls)
        return _table(converter, node, cls, label)

    def component(node: Node, annotation: Any) -> Use:
        return _component(converter, node, annotation_marker(annotation, Kind).name)

    def path(node: Node, annotation: Any) -> str:
        return local_path(node, annotation_marker(annotation, PathMark))

    def plain(node: Node, annotation: Any) -> Any:
        return converter.structure(node, annotation.__origin__)

    converter.register_structure_hook_func(attrs.has, table)
    converter.register_structure_hook_func(lambda t: typing.get_origin(t) is Literal, literal)
    converter.register_structure_hook_func(lambda t: typing.get_origin(t) is tuple, tuple_of)
    converter.register_structure_hook_func(lambda t: len(union_members(t)) > 1, one_of)
    converter.register_structure_hook_func(lambda t: typing.get_origin(t) is typing.Annotated, plain)
    converter.register_structure_hook_func(lambda t: annotation_marker(t, PathMark) is not None, path)
    converter.register_structure_hook_func(lambda t: annotation_marker(t, Kind) is not None, component)
    return converter


def _label(path: Path, cls: type) -> str:
    keys = [step for step in path if isinstance(step, str)]
    return f"[{'.'.join(keys)}]" if keys else getattr(cls, "title", f"a {cls.__name__.lower()}")


def _list(converter: cattrs.Converter, node: Node, annotation: Any) -> tuple:
    members = typing.get_args(annotation)
    value = node.value
    item = members[0]
    of_components = len(members) == 2 and members[1] is Ellipsis and annotation_marker(item, Kind)
    if of_components and isinstance(value, str | Mapping):
        return (converter.structure(node, item),)
    if not isinstance(value, list | tuple):
        node.refuse(f"must be {type_description(annotation)}, not {shown(value)}")
    if not (len(members) == 2 and members[1] is Ellipsis):
        if len(value) != len(members):
            node.refuse(f"must be {type_description(annotation)}; it has {len(value)}")
        types = members
    else:
        types = (item,) * len(value)
    found = []
    for index, (one, kind) in enumerate(zip(value, types)):
        try:
            found.append(converter.structure(node.child(index, one), kind))
        except InvalidValue:
            continue
    if len(found) < len(value):
        raise InvalidValue
    return tuple(found)


def _union(converter: cattrs.Converter, node: Node, annotation: Any) -> Any:
    members = union_members(annotation)
    if node.value is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    trials = []
    for member in members:
        trial = attrs.evolve(node, diagnostics=attrs.evolve(node.diagnostics, problems=[]))
        try:
            return converter.structure(trial, member)
        except InvalidValue:
            trials.append(trial.diagnostics.problems)
    deeper = [problems for problems in trials if any(path != node.path for path, _ in problems)]
    if len(members) == 1 or len(deeper) == 1:
        for path, what in (deeper or trials)[0]:
            node.diagnostics.report(path, what)
        raise InvalidValue
    if isinstance(node.value, str):
        named = [problems for problems, member in zip(trials, members) if _names_component(member)]
        if len(named) == 1:
            node.refuse(f"must be {type_description(annotation)}: {named[0][0][1]}")
    node.refuse(f"must be {type_description(annotation)}, not {shown(node.value)}")


def _names_component(annotation: Any) -> bool:
    return any(annotation_marker(member, Kind) for member in (annotation, *typing.get_args(annotation)))


def _table(
    converter: cattrs.Converter, node: Node, cls: type, label: str, owner: str = "", siblings: tuple[str, ...] = ()
) -> Any:
    if isinstance(node.value, cls):
        return node.value
    inline = next((field for field in attrs.fields(cls) if is_inline(field)), None)
    bare = inline is not None and isinstance(node.value, str)
    if not isinstance(node.value, Mapping) and not bare:
        node.refuse(f"must be a table, not {shown(node.value)}")
    hints = types_of(cls)
    rest = {} if bare else dict(node.value)
    values: dict[str, Any] = {}
    count = len(node.diagnostics.problems)
    known = [key_of(field) for field in attrs.fields(cls) if not is_inline(field)]
    for field in attrs.fields(cls):
        if field is inline:
            continue
        key = key_of(field)
        default = _default(field)
        raw = rest.pop(key, default)
        if raw is ABSENT:
            needed = type_description(hints[field.name])
            node.diagnostics.report((*node.path, key), f"missing: {label} needs {needed} here")
            continue
        try:
            values[field.name] = converter.structure(node.child(key, raw, default), hints[field.name])
        except InvalidValue:
            continue
    if inline is not None:
        inner = Node(node.value if bare else rest, node.path, node.diagnostics, _default(inline), tuple(known))
        try:
            values[inline.name] = converter.structure(inner, hints[inline.name])
        except InvalidValue:
            pass
    else:
        noun = "key" if label.startswith(("[", "a ")) else "option"
        for key in rest:
            here = [*known, *siblings]
            homes = [] if owner and near(str(key), here) else _homes(str(key), node)
            hint = f" - it is {' or '.join(homes)}" if homes else suggestion(str(key), here, f"{noun}s")
            node.diagnostics.report((*node.path, str(key)), f"{label} has no {noun} {str(key)[:64]!r}{hint}")
    for name, what in faults_of(cls, values, owner):
        node.diagnostics.report((*node.path, name), what)
    if len(node.diagnostics.problems) > count or len(values) < len(attrs.fields(cls)):
        raise InvalidValue
    try:
        return construct(cls, values, owner)
    except ValueError as error:
        node.refuse(str(error))


def _homes(key: str, node: Node) -> list[str]:
    """The one or two places of other tables of a recipe where this key stands; none where there are more, and for what
    is read without components: a plan, which is no recipe, and [plugins], which says what components there are."""
    stacks = node.diagnostics.registry.offers("model", "stack")
    if len(stacks) != 1:
        return []
    tables = {(): Recipe, ("model",): stacks[0].component.options} | {
        (name,): one for name, one in types_of(Recipe).items() if attrs.has(one)
    }
    found = [
        ".".join([*path, key]) if path else f"{key} before the first table" for path, cls in tables.items()
        if path != node.path and any(key_of(one) == key for one in attrs.fields(cls) if not is_inline(one))
    ]
    return found if len(found) <= 2 else []


def _default(field: attrs.Attribute) -> Any:
    default = field.default
    if default is attrs.NOTHING:
        return ABSENT
    if isinstance(default, attrs.Factory):
        return ABSENT if default.takes_self else default.factory()
    return default


def _chosen(node: Node, what: str, known: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """The name and the other keys of a value that chooses ``what``, a component."""
    if isinstance(node.value, str):
        return node.value, {}
    if not isinstance(node.value, Mapping):
        node.refuse(f"must be a name or a table with use = \"…\", not {shown(node.value)}")
    table = dict(node.value)
    if "use" not in table:
        default = node.default
        default = {"use": default} if isinstance(default, str) else default
        if not isinstance(default, Mapping):
            choices = ", ".join(known) or "none that is installed"
            node.diagnostics.report((*node.path, "use"), f"missing - one of {choices}")
            raise InvalidValue
        table = {**default, **table}
    name = table.pop("use")
    if not isinstance(name, str):
        node.diagnostics.report((*node.path, "use"), f"must be the name of {what}, as text, not {shown(name)}")
        raise InvalidValue
    return name, table


def _use_path(node: Node) -> Path:
    return (*node.path, "use") if isinstance(node.value, Mapping) else node.path


def _component(converter: cattrs.Converter, node: Node, kind: str) -> Use:
    rows = node.diagnostics.registry.rows()
    known = dict.fromkeys(row.name for row in rows if kind in (row.kind, NAMESPACE[row.kind]))
    node = _with_name(node, kind)
    name, table = _chosen(node, f"{article(kind)} {kind}", known)
    try:
        row = node.diagnostics.registry.find(kind, name)
    except UnknownComponent as error:
        node.diagnostics.report(_use_path(node), str(error))
        raise InvalidValue from None
    owner = f"{row.distribution} {row.version}"
    table = _upgraded(node, row, table, owner)
    inner = attrs.evolve(node, value=table)
    options = _table(converter, inner, row.component.options, row.name, owner, node.siblings)
    return Use(
        kind=row.kind, name=row.name, distribution=row.distribution, version=row.version,
        implementation=row.component.implementation, options=options, path=written(node.path), qualified="@" in name,
    )


def _upgraded(node: Node, row: Any, table: dict[str, Any], owner: str) -> dict[str, Any]:
    """The options of an older version in today's words, when the recipe says which version wrote them."""
    version = node.diagnostics.versions.get(row.distribution)
    upgrade = getattr(row.component.options, "upgrade", None)
    if version in (None, row.version) or upgrade is None:
        return table
    try:
        upgraded = upgrade(dict(table), version)
    except ValueError as error:
        node.refuse(f"{row.name} cannot upgrade options written for {row.distribution} {version}: {error}")
    except Exception as error:
        node.refuse(f"upgrading from {version} raised {type(error).__name__}: {error} (a fault of {owner})")
    if not isinstance(upgraded, dict):
        node.refuse(f"upgrading from {version} gave {type(upgraded).__name__} instead of a table (a fault of {owner})")
    return upgraded


def _with_name(node: Node, kind: str) -> Node:
    """A table without ``use`` where one component of the core alone has required keys, all of them in it: then it is
    meant, as ``{ from = RUN }``. Plugins never change what such a table means."""
    table = node.value
    if not isinstance(table, Mapping) or "use" in table or not isinstance(node.default, str):
        return node
    rows = [row for row in node.diagnostics.registry.rows(kind) if row.distribution == CORE]
    needed = {
        row.name: {key_of(field) for field in attrs.fields(row.component.options) if field.default is attrs.NOTHING}
        for row in rows
    }
    found = [name for name, keys in needed.items() if keys and keys <= table.keys()]
    return attrs.evolve(node, value={"use": found[0], **table}) if len(found) == 1 else node
