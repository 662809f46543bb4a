"""Triton's interpreter in half its time, for tests: ``TRITON_INTERPRET=1 pytest -p muse_kernels.testing.interpreter``.
What kernels compute is the same.

For the time of a launch the interpreter replaces the functions of ``triton.language``, and looks through all of them
again at each call of a jitted function within it, where it finds them replaced: here it looks once a launch.
"""

from __future__ import annotations

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


def pytest_configure() -> None:
    interpreter._patch_lang = _once_a_launch(interpreter._patch_lang)
