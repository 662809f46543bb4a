"""Shows a suite a component that is wrong in one way."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from muse_core.component import Component
from muse_core.testing.cases import Case
from muse_core.testing.loose import registry_with
from muse_core.testing.suite import Suite


def calls(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """Arguments of every combination that the test's parametrize marks name."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    for values in itertools.product(*(list(mark.args[1]) for mark in marks)):
        yield {mark.args[0]: value for mark, value in zip(marks, values)}


@pytest.fixture
def complaint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str | None]:
    """``complaint(Suite, implementation, options, test)``: what the test of the suite says about the class, or None
    when it lets it pass."""

    def judge(suite_class: type[Suite], implementation: type, options: type, name: str) -> str | None:
        reference = f"{implementation.__module__}:{implementation.__qualname__}"
        row = (suite_class.kind, Component("specimen", options=options, implementation=reference))

        class Specimen(suite_class):  # type: ignore[misc, valid-type]
            @classmethod
            def registry(cls) -> Any:
                return registry_with(row)

        suite = Specimen()
        test = getattr(suite, name)
        for arguments in calls(test):
            if "tmp_path" in inspect.signature(test).parameters:
                arguments["tmp_path"] = tmp_path_factory.mktemp("specimen")
            try:
                test(Case(kind=suite_class.kind, name="specimen", options={}), **arguments)
            except Exception as error:  # whatever a test raises is its complaint
                return f"{type(error).__name__}: {error}"
            except pytest.skip.Exception:
                continue
        return None

    return judge


@pytest.fixture
def tests_of() -> Callable[[type[Suite]], set[str]]:
    """Names of the tests of a suite."""
    return lambda suite: {name for name, _ in inspect.getmembers(suite, inspect.isfunction) if name.startswith("test_")}
