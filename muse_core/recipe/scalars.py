"""Numbers, text and truth values, without coercion; only a whole number may stand where a number is asked."""

from __future__ import annotations

import math
import os
import typing
from typing import Any

from muse_core.component import PathMark
from muse_core.options.describe import type_description
from muse_core.plugins.near import near
from muse_core.recipe.nodes import Node
from muse_core.recipe.words import has_control_characters, shown


def whole(node: Node, _: Any) -> int:
    if isinstance(node.value, bool) or not isinstance(node.value, int):
        node.refuse(f"must be a whole number, not {shown(node.value)}")
    return _within_64_bits(node)


def _within_64_bits(node: Node) -> int:
    if not -(2**63) <= node.value < 2**63:
        node.refuse("must be a number of at most 64 bits")
    return node.value


def number(node: Node, _: Any) -> float:
    if isinstance(node.value, bool) or not isinstance(node.value, int | float):
        node.refuse(f"must be a number, not {shown(node.value)}")
    if isinstance(node.value, int):
        return float(_within_64_bits(node))
    if not math.isfinite(node.value):
        node.refuse(f"must be a finite number, not {shown(node.value)}")
    return node.value


def text(node: Node, _: Any) -> str:
    if not isinstance(node.value, str):
        node.refuse(f"must be text, not {shown(node.value)}")
    if has_control_characters(node.value):
        node.refuse("must be text without control characters")
    return node.value


def local_path(node: Node, mark: PathMark) -> str:
    """An absolute path; a name that is not a folder stays as it is where the option takes names."""
    value = text(node, str)
    if not value:
        node.refuse('must be a path, not empty - "." is the folder of the recipe')
    expanded = os.path.expanduser(value)
    if value.startswith("~") and expanded == value:
        node.refuse(f"there is no home folder {value.split('/')[0]!r} here - write the path in full")
    path = os.path.normpath(os.path.join(node.diagnostics.folder(node.path), expanded))
    return value if mark.or_name and not os.path.isdir(path) else path


def truth(node: Node, _: Any) -> bool:
    if not isinstance(node.value, bool):
        node.refuse(f"must be true or false, not {shown(node.value)}")
    return node.value


def literal(node: Node, annotation: Any) -> Any:
    values = typing.get_args(annotation)
    for value in values:
        if type(value) is type(node.value) and value == node.value:
            return value
    texts = [value for value in values if isinstance(value, str)]
    close = near(node.value, texts) if isinstance(node.value, str) else None
    hint = f" - did you mean {close!r}?" if close else ""
    node.refuse(f"must be {type_description(annotation)}, not {shown(node.value)}{hint}")
