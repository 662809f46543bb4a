"""What a gate answers. Imports no torch."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

Number = float | int | str | bool | None


class Outcome(enum.StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    NOT_APPLICABLE = "NOT APPLICABLE"


@attrs.frozen(kw_only=True)
class Finding:
    """A gate's answer."""

    outcome: Outcome
    figure: str
    """What was measured, in a line; for a gate that does not apply the reason why."""
    reason: str = ""
    """Of a failure: what is wrong and what to do."""
    numbers: Mapping[str, Number] = {}
    """For the report, by name with the unit in it."""


def passed(figure: str, **numbers: Number) -> Finding:
    return Finding(outcome=Outcome.PASS, figure=figure, numbers=numbers)


def failed(figure: str, reason: str, **numbers: Number) -> Finding:
    return Finding(outcome=Outcome.FAIL, figure=figure, reason=reason, numbers=numbers)


def not_applicable(reason: str) -> Finding:
    return Finding(outcome=Outcome.NOT_APPLICABLE, figure=reason)


def judged(good: bool, figure: str, reason: str, **numbers: Number) -> Finding:
    """``passed`` or ``failed`` with ``reason``."""
    return passed(figure, **numbers) if good else failed(figure, reason, **numbers)
