"""Values of a recipe in a message, and text that none may hold."""

from __future__ import annotations

import re
from typing import Any


def shown(value: Any) -> str:
    """A value in a few words: ``the text '64'``, ``1.5``, ``true``, ``a list``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {clipped(value)!r}"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a huge number"  # Python refuses to print one of more than 4300 digits
    if isinstance(value, int | float):
        return clipped(str(value))
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    return {"datetime": "a date", "date": "a date", "time": "a time"}.get(type(value).__name__, type(value).__name__)


def clipped(text: str, length: int = 40) -> str:
    """At most ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def has_control_characters(text: str) -> bool:
    """Whether a text holds what a recipe refuses: control characters other than tab and new line, lone surrogates."""
    return _CONTROL.search(text) is not None
