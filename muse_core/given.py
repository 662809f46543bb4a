"""Values that a caller of the Python interface gives, checked for their type: another one is told in a sentence, as a
TypeError, with the argument's name and what it takes."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any


def whole(name: str, value: Any) -> int:
    """A whole number; a bool, a tensor or numpy's of one element will do where Python takes it as an index."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {told(value)}") from None


def at_least(least: int, **given: Any) -> None:
    """Raises ValueError for a number below ``least``, TypeError for one that is not whole."""
    for name, value in given.items():
        if whole(name, value) < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def at_most(most: int, **given: Any) -> None:
    """Raises ValueError for a number above ``most``, TypeError for one that is not whole."""
    for name, value in given.items():
        if whole(name, value) > most:
            raise ValueError(f"{name} must be at most {most}, not {value}")


def number(name: str, value: Any) -> None:
    """Raises TypeError for what is no real number."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {told(value)}")


def path(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, not {told(value)}")
    return Path(value)


def texts(name: str, value: Any) -> list[str]:
    """Several texts or names, one after the other."""
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise TypeError(f"{name} must be a list of str, not {told(value)}")
    found = list(value)
    for one in found:
        if not isinstance(one, str):
            raise TypeError(f"{name} must be a list of str; {told(one)} is in it")
    return found


def tokens(value: Any) -> list[int]:
    """Token ids."""
    if isinstance(value, bytes):
        raise TypeError("bytes may mean a text or token ids: decode them, or give a list of ids")
    try:
        items = list(value)
    except TypeError:  # tensors of one number look as if they could be iterated
        raise TypeError(f"a text is a str or a list of token ids, not {told(value)}") from None
    try:
        return [operator.index(one) for one in items]  # 1.5 is no token
    except TypeError:
        first = next(one for one in items if not _is_whole(one))
        several = " - give one text at a time" if hasattr(first, "__len__") else ""
        raise TypeError(f"a token id is a whole number, and {told(first)} is in the list{several}") from None


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def told(value: Any) -> str:
    """``'a' (str)``, a long one cut."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({type(value).__name__})"
