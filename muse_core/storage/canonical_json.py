"""JSON with one spelling for every value, so that bytes can be hashed and compared. Imports no torch."""

from __future__ import annotations

import json
import math
from typing import Any


def encode(value: Any, *, spell_nonfinite: bool = False) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; floats survive to the last bit.

    ``spell_nonfinite``: NaN and infinities become the strings "nan", "inf", "-inf"; otherwise they are refused.
    Raises ValueError, naming the key path, for what JSON would change: tuples, keys that are not strings, other types.
    """
    try:
        plain = _plain(value, "", spell_nonfinite)
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None


def spelled(value: Any) -> Any:
    """The value with NaN and infinities as the strings "nan", "inf" and "-inf", for JSON that any program reads."""
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(item) for item in value]
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def numbers(value: Any) -> Any:
    """The inverse of ``spelled``."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def decode(data: bytes) -> Any:
    """The value of JSON bytes. Raises ValueError for anything malformed, NaN, repeated keys or absurd nesting."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _plain(value: Any, path: str, spell_nonfinite: bool) -> Any:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None or (kind is float and math.isfinite(value)):
        return value
    where = path or "value"
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where}: key {key!r} is not a string and would come back as one")
        return {key: _plain(item, f"{path}.{key}" if path else key, spell_nonfinite) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, f"{where}[{index}]", spell_nonfinite) for index, item in enumerate(value)]
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        if spell_nonfinite:
            return str(float(value))
        raise ValueError(f"{where}: {value} has no JSON form; keep it in a tensor or leave it out")
    raise ValueError(f"{where}: {kind.__name__} has no JSON form that comes back unchanged")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is repeated")
    return table


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
