"""Runs the validators of an options class key by key, so that all of them are heard and not only the first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from muse_core.options.describe import field_documentation, key_of
from muse_core.options.ranges import flat, range_of
from muse_core.recipe.words import clipped, shown


def faults_of(cls: type, values: dict[str, Any], owner: str) -> Iterable[tuple[str, str]]:
    """(key, sentence) of every value that a validator of its field refuses.

    ``values`` by field name may be incomplete; a validator that needs a missing one is passed over, since that key has
    been reported. ``owner`` (distribution and version) is named when a validator fails instead of refusing.
    """
    partial = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(partial, name, value)
    complete = len(values) == len(attrs.fields(cls))
    for field in attrs.fields(cls):
        if field.validator is None or field.name not in values:
            continue
        value = values[field.name]
        for validator in [field.validator] if value is None else flat(field.validator):
            try:
                validator(partial, field, value)
            except (ValueError, TypeError) as error:
                yield key_of(field), _sentence(cls, field, validator, value, error)
                break
            except Exception as error:
                if isinstance(error, AttributeError) and not complete:
                    continue
                yield key_of(field), f"its check raised {type(error).__name__}: {error}{_fault(owner)}"
                break


def construct(cls: type, values: dict[str, Any], owner: str) -> Any:
    """The instance. Raises ValueError with a sentence, whatever the class raises."""
    arguments = {field.alias: values[field.name] for field in attrs.fields(cls)}
    try:
        return cls(**arguments)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"making {cls.__name__} raised {type(error).__name__}: {error}{_fault(owner)}") from error


def _sentence(cls: type, field: attrs.Attribute, validator: Any, value: Any, error: Exception) -> str:
    broken = range_of(validator)
    if broken.pattern is not None:
        text = field_documentation(cls).get(field.name, ("", 0))[0]
        hint = f" - {' '.join(text.split())}" if text else ""
        return f"must be of the form {broken.pattern}, not {shown(value)}{hint}"
    if broken.min_length is not None or broken.max_length is not None:
        return f"must be {broken}; it is {len(value)} long"
    if str(broken):
        hint = f" - {field.metadata['hint']}" if "hint" in field.metadata else ""
        return f"must be {range_of(field.validator)}, not {shown(value)}{hint}"
    return clipped(str(error.args[0]) if error.args else type(error).__name__, 300)


def _fault(owner: str) -> str:
    return f" (a fault of {owner})" if owner else ""
