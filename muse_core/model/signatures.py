"""Compares an implementation's methods with the protocol of its kind, so that a mistake is a sentence at build time."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from muse_core import contracts
from muse_core.kinds import ROWS

METHODS = {row.name: (getattr(contracts, row.protocol), row.methods) for row in ROWS}
"""Kind → its protocol and the methods that the core calls. ``__init__`` of Model takes (options, context) too."""

TASK_SOURCE = (contracts.TaskSource, ("__init__", "fingerprint", "examples"))
"""What a source keeps that makes examples instead of documents."""


def mismatch(kind: str, implementation: type) -> str | None:
    """How ``implementation`` departs from the protocol of ``kind``, in a sentence, or None."""
    protocol, methods = METHODS[kind]
    if kind == "source" and hasattr(implementation, "examples"):
        protocol, methods = TASK_SOURCE
    for name in methods:
        expected = ["options", "context"] if name == "__init__" else _parameters(protocol, name)
        method = getattr(implementation, name, None)
        if method is None or (name == "__call__" and "__call__" not in dir(implementation)):
            return f"{implementation.__qualname__} has no method {name}({', '.join(expected)})"
        sentence = _difference(f"{implementation.__qualname__}.{name}", expected, method)
        if sentence:
            return sentence
    return None


@functools.cache
def _parameters(protocol: type, method: str) -> list[str]:
    """Of a protocol's method: as many components are built, as often are they asked for."""
    return [name for name in inspect.signature(getattr(protocol, method)).parameters if name != "self"]


def _difference(title: str, expected: list[str], method: Any) -> str | None:
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    named = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for index, name in enumerate(expected):
        if index >= len(named):
            return f"{title} lacks parameter {index + 1}, {name!r}; the contract is ({', '.join(expected)})"
        if named[index] != name:
            return (
                f"{title}: parameter {index + 1} is {named[index]!r} where the contract has {name!r} "
                f"({', '.join(expected)})"
            )
    extra = [p.name for p in parameters[len(expected) :] if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if extra:
        return f"{title}: parameter {extra[0]!r} is not in the contract ({', '.join(expected)}) and has no default"
    return None
