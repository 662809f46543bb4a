"""Ranges that attrs validators state, read back from them for help, messages and schemas."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import validators

_NUMBER = type(validators.ge(0))
_AND = type(validators.and_(validators.ge(0)))
_OPTIONAL = type(validators.optional(validators.ge(0)))
_MIN_LENGTH = type(validators.min_len(0))
_MAX_LENGTH = type(validators.max_len(0))
_IN = type(validators.in_(()))
_PATTERN = type(validators.matches_re(""))
_EACH = type(validators.deep_iterable(validators.ge(0)))

_LIMITS = {">=": "at_least", ">": "more_than", "<=": "at_most", "<": "less_than"}


@attrs.frozen(kw_only=True)
class Range:
    """What a value must satisfy. Everything None: nothing that could be read."""

    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    among: tuple[Any, ...] | None = None
    pattern: str | None = None
    items: Range | None = None
    """Range of each item of a list."""

    def __str__(self) -> str:
        """In words, to follow "must be"; empty when nothing is known."""
        parts = []
        if self.among is not None:
            parts.append("one of " + ", ".join(repr(value) for value in self.among))
        for limit, words in (
            (self.at_least, "at least"), (self.more_than, "more than"),
            (self.at_most, "at most"), (self.less_than, "less than"),
        ):
            if limit is not None:
                parts.append(f"{words} {limit}")
        if self.min_length is not None:
            parts.append(f"at least {self.min_length} long")
        if self.max_length is not None:
            parts.append(f"at most {self.max_length} long")
        if self.pattern is not None:
            parts.append(f"of the form {self.pattern}")
        if self.items is not None and str(self.items):
            parts.append(f"a list whose items are each {self.items}")
        return " and ".join(parts)


def range_of(validator: Any) -> Range:
    """The range that a field's validator states; validators other than attrs' own add nothing."""
    limits: dict[str, Any] = {}
    for one in flat(validator):
        if isinstance(one, _NUMBER) and one.compare_op in _LIMITS:
            limits[_LIMITS[one.compare_op]] = one.bound
        elif isinstance(one, _MIN_LENGTH):
            limits["min_length"] = one.min_length
        elif isinstance(one, _MAX_LENGTH):
            limits["max_length"] = one.max_length
        elif isinstance(one, _IN):
            limits["among"] = tuple(one.options)
        elif isinstance(one, _PATTERN):
            limits["pattern"] = one.pattern.pattern
        elif isinstance(one, _EACH):
            limits["items"] = range_of(one.member_validator)
    return Range(**limits)


def flat(validator: Any) -> list[Any]:
    """The validators inside ``and_``, ``optional`` and lists, in order."""
    if validator is None:
        return []
    if isinstance(validator, _AND):
        return [one for inner in validator._validators for one in flat(inner)]
    if isinstance(validator, _OPTIONAL):
        return flat(validator.validator)
    if isinstance(validator, list | tuple):
        return [one for inner in validator for one in flat(inner)]
    return [validator]
