"""Pairs ``"OLD=NEW"`` of parts of parameter names. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def RENAMES(instance: Any, attribute: Any, value: Sequence[str]) -> None:
    """A validator. Raises ValueError naming the pair that is none."""
    for pair in value:
        old, _, new = pair.partition("=")
        if not old or not new or "=" in new:
            raise ValueError(f'{attribute.name}: {pair!r} must be "OLD=NEW", two parts of parameter names')
