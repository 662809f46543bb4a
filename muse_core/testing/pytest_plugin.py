"""The pytest plugin: strict expected failures of conformance suites. Imports no torch, as every pytest starts it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from muse_core.plugins import Registry


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "variant: options that a conformance suite varies by itself")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a suite declares in ``expected_failures``; a name that is not a test of it is a usage error."""
    for item in items:
        suite = getattr(item, "cls", None)
        if suite is None or not getattr(suite, "conformance", False):
            continue
        assert isinstance(item, pytest.Function), "a suite's items are functions"
        unknown = [name for name in suite.expected_failures if not hasattr(suite, name.partition("[")[0])]
        if unknown:
            raise pytest.UsageError(f"{suite.__name__}.expected_failures names no test: {', '.join(unknown)}")
        for name, reason in suite.expected_failures.items():
            function, _, variant = name.rstrip("]").partition("[")
            if function == item.function.__name__ and variant in item.name:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture
def muse_registry() -> Registry:
    """Every installed plugin, loaded. Override it to test components that are not installed."""
    from muse_core.testing.cases import installed

    return installed()


@pytest.fixture
def muse_build(muse_registry: Registry) -> Callable[..., Any]:
    """``build_component`` from ``muse_registry``: ``muse_build(kind, name, **options)``."""
    from muse_core.testing.building import build_component

    return functools.partial(build_component, registry=muse_registry)
