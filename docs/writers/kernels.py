"""The public functions of ``muse_kernels``, read from their docstrings."""

from __future__ import annotations

import ast

from .prose import fenced, prose
from .sources import Described, member, module

PAGE = "reference/kernels.md"
FOLDER = "kernels/src/muse_kernels"


def pages() -> dict[str, str]:
    package = module(f"{FOLDER}/__init__.py")
    parts = ["# Kernels", prose(ast.get_docstring(package), PAGE)]
    for one in public(package):
        parts += [f"## `{one.name}`", fenced(_shown(one)), prose(one.doc, PAGE)]
    return {PAGE: "\n\n".join(parts)}


def public(package: ast.Module) -> list[Described]:
    """What the package exports, in the order of its imports, functions before the rest."""
    found = []
    for statement in package.body:
        if isinstance(statement, ast.ImportFrom) and statement.level == 1:
            scope = module(f"{FOLDER}/{statement.module}.py")
            found += [member(scope, alias.name) for alias in statement.names]
    return sorted(found, key=lambda one: isinstance(one.node, ast.ClassDef))


def _shown(one: Described) -> str:
    if not isinstance(one.node, ast.ClassDef):
        return one.signature
    fields = [statement for statement in one.node.body if not _is_docstring(statement, one.node)]
    return "\n".join([f"{one.signature}:", *(f"    {ast.unparse(field)}" for field in fields)])


def _is_docstring(statement: ast.stmt, node: ast.ClassDef) -> bool:
    return statement is node.body[0] and ast.get_docstring(node) is not None
