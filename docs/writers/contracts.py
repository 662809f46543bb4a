"""What passes between components, read from ``muse_core.contracts`` and what a component is told when it is built."""

from __future__ import annotations

import ast

from .prose import fenced, plain, prose
from .sources import Described, members, module

PAGE = "reference/contracts.md"
PROTOCOL = "Protocol"


def pages() -> dict[str, str]:
    contracts = module("muse_core/contracts.py")
    parts = ["# Contracts", prose(ast.get_docstring(contracts), PAGE), "Everything here is in `muse_core.contracts`."]
    both = [*members(contracts), *members(module("muse_core/run_contracts.py"))]
    found = [one for one in both if isinstance(one.node, ast.ClassDef)]
    parts += ["## What is passed"]
    parts += [part for one in found if not _is_protocol(one) for part in _tuple(one)]
    parts += ["## Protocols"]
    parts += [part for one in found if _is_protocol(one) for part in _protocol(one)]
    optional = members(module("muse_core/optional_contracts.py"))
    parts += ["## Optional protocols", "In `muse_core.optional_contracts`."]
    parts += [part for one in optional if isinstance(one.node, ast.ClassDef) for part in _protocol(one)]
    context = next(one for one in members(module("muse_core/model/context.py")) if one.name == "Context")
    parts += ["## What a component is told", "`muse_core.model.context.Context`", *_tuple(context)]
    return {PAGE: "\n\n".join(parts)}


def _is_protocol(one: Described) -> bool:
    return isinstance(one.node, ast.ClassDef) and PROTOCOL in map(ast.unparse, one.node.bases)


def _tuple(one: Described) -> list[str]:
    """A named tuple, an enumeration or the context, with its fields."""
    assert isinstance(one.node, ast.ClassDef)
    lines = [f"- `{field.signature}`{_said(field)}" for field in members(one.node)]
    return [f"### {one.name}", prose(one.doc, PAGE), "\n".join(lines)]


def _said(field: Described) -> str:
    text = field.doc if not isinstance(field.node, ast.FunctionDef) else field.doc.partition("\n\n")[0]
    return f": {plain(' '.join(text.split()), PAGE)}" if text else ""


def _protocol(one: Described) -> list[str]:
    return [f"### {one.name}", prose(one.doc, PAGE), fenced(_without_docstring(one.node))]


def _without_docstring(node: ast.AST) -> str:
    """A protocol's code; its own docstring stands above, those of its methods stay."""
    assert isinstance(node, ast.ClassDef)
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return ast.unparse(ast.ClassDef(
        name=node.name, bases=node.bases, keywords=[], body=body, decorator_list=[], type_params=[]
    ))
