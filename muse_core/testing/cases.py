"""Which components a suite runs, with which options."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from muse_core.options.describe import options_of, union_members
from muse_core.plugins import Registered, Registry, load_plugins

MANY = 16
"""Values of a validator ``in_`` up to which each is a case of its own: sizes may be among hundreds."""


@attrs.frozen(kw_only=True)
class Case:
    """One component with options as a recipe would write them."""

    kind: str
    name: str
    """As in a recipe, with the distribution where the name clashes."""
    options: Mapping[str, Any]
    distribution: str = ""
    derived: bool = False
    """A variant that the suite made up; the component may refuse it with a RecipeError."""

    @property
    def label(self) -> str:
        """Identifies the case in listings: ``hebbian(rule=hebbian)``."""
        given = ", ".join(f"{key}={_short(value)}" for key, value in self.options.items())
        return f"{self.name}({given})" if given else self.name


@functools.cache
def installed() -> Registry:
    """The registry of this environment, read once a process."""
    return load_plugins()


def registered_cases(registry: Registry, kind: str, folder: Path) -> list[Case]:
    """Cases of every component of a kind: see ``cases_of``."""
    found: list[Case] = []
    for row in registry.rows(kind):
        own = folder / row.name
        own.mkdir()
        found += cases_of(row, own, registry.reference(row.kind, row.name, row.distribution))
    return found


def cases_of(row: Registered, folder: Path, reference: str | None = None) -> list[Case]:
    """The defaults, every other value of each option that has few (``alternatives``), and the tables that the options
    class returns from ``examples(folder)``, a static method for components whose defaults are not enough to build
    them; ``folder`` is an empty scratch folder for files that they name. Examples are all cases of a class that says
    ``writes_elsewhere = True``: its defaults reach a server or the user's own folders."""
    options = row.component.options
    tables: list[tuple[dict[str, Any], bool]] = []
    examples = getattr(options, "examples", None)
    if examples is None or not (_required(options) or getattr(options, "writes_elsewhere", False)):
        tables.append(({}, False))
        tables += [(table, True) for table in alternatives(options)]
    if examples is not None:
        tables += [(dict(table), False) for table in examples(folder)]
    return [
        Case(
            kind=row.kind,
            name=reference or row.name,
            options=table,
            distribution=row.distribution,
            derived=derived,
        )
        for table, derived in tables
    ]


def alternatives(options: type) -> Iterator[dict[str, Any]]:
    """One table for each value, other than the default, of an option that is a bool, a Literal, or one of at most
    ``MANY`` values of a validator ``in_``."""
    for option in options_of(options):
        among = option.range.among or ()
        for value in _enumerated(option.type) or (among if len(among) <= MANY else ()):
            if value != option.default:
                yield {option.key: value}


def _enumerated(annotation: Any) -> tuple[Any, ...]:
    if annotation is bool:
        return (True, False)
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    members = union_members(annotation)
    return tuple(value for member in members for value in _enumerated(member)) if len(members) > 1 else ()


def _required(options: type) -> bool:
    return any(option.required for option in options_of(options))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 32 else Path(text).name[:32]
