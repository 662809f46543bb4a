"""Triton's interpreter in less than half its time, for tests:
``TRITON_INTERPRET=1 pytest -p muse_kernels.testing.interpreter``. What kernels compute is the same.

- For the time of a launch the interpreter replaces the functions of ``triton.language``, and looks through all of them
  again at each call of a jitted function within it, where it finds them replaced: here it looks once a launch.
- It works out every sum, difference and product of integers again in 64 bits and compares, for an assertion that it
  then makes only where its option ``debug`` is set: here that option decides about both.
- It makes a table of numpy's types each time it looks one up: here a type that was found is kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from triton import language
from triton.runtime import interpreter


@functools.cache
def _modules(function: Callable[..., Any]) -> frozenset[str]:
    """Of triton.language and its core, those that a function sees and the interpreter therefore replaces."""
    seen = {id(value) for value in function.__globals__.values()}
    return frozenset(module.__name__ for module in (language, language.core) if id(module) in seen)


def _once_a_launch(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    replaced: set[str] = set()

    def patch_once(function: Callable[..., Any]) -> Any:
        if replaced and _modules(function) <= replaced:
            return None  # a call within a launch, whose scope nobody asks for
        scope = patch(function)
        replaced.update(_modules(function))
        restore = scope.restore

        def restored() -> None:
            replaced.clear()
            restore()

        scope.restore = restored
        return scope

    return patch_once


def _kept(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """By the name of a type's elements, since types of blocks cannot be hashed."""
    known: dict[str, Any] = {}

    def found(dtype: Any) -> Any:
        element = dtype.scalar
        if element.is_ptr():
            return find(element)
        if element.name not in known:
            known[element.name] = find(element)
        return known[element.name]

    return found


def pytest_configure() -> None:
    interpreter._patch_lang = _once_a_launch(interpreter._patch_lang)
    interpreter._get_np_dtype = _kept(interpreter._get_np_dtype)
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
