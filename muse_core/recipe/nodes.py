"""A plain value at its place in a recipe, and the sheet on which everything wrong with it is reported."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from muse_core.plugins import Registry
from muse_core.recipe.positions import Path

MAX_PROBLEMS = 100

ABSENT: Any = object()
"""Stands for a field without a default."""


class InvalidValue(Exception):
    """The value was reported and has no structured form."""


class TooManyProblems(Exception):
    """So many problems that more would not help."""


@attrs.frozen
class Diagnostics:
    """What all nodes of one check share."""

    registry: Registry
    problems: list[tuple[Path, str]] = attrs.field(factory=list)
    versions: Mapping[str, str] = {}
    """Versions of the distributions that the recipe was written for, when it comes from a lock."""
    folder: Callable[[Path], str] = lambda path: os.getcwd()  # noqa: E731
    """Key path to the folder that a relative path there is relative to."""

    def report(self, path: Path, what: str) -> None:
        if len(self.problems) == MAX_PROBLEMS:
            raise TooManyProblems
        self.problems.append((path, what))


@attrs.frozen
class Node:
    """A plain value at its place."""

    value: Any
    path: Path
    diagnostics: Diagnostics
    default: Any = ABSENT
    """What the field would hold without the recipe, as its class writes it."""
    siblings: tuple[str, ...] = ()
    """Keys of the table around an inline component, for suggestions."""

    def refuse(self, what: str) -> typing.NoReturn:
        self.diagnostics.report(self.path, what)
        raise InvalidValue

    def child(self, step: str | int, value: Any, default: Any = ABSENT) -> Node:
        return Node(value, (*self.path, step), self.diagnostics, default)
