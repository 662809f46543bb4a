"""Fixtures of the tests of promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muse_core.selftest.promises.trial import TRAINED, TRIAL, Trial


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "promise(name): the promise that the test holds MUSE to")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with the rollback monitor that has learned nearly all it will, and its recipe. Copy it to go on with it."""
    from muse_core.selftest.promises.runs import monitored, train

    folder = tmp_path_factory.mktemp("trained")
    recipe = monitored(folder)
    train(folder / "run", recipe, TRAINED)
    return folder / "run", recipe


@pytest.fixture
def trial(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Trial:
    """Short form and a fixed seed, unless a plugin asks for something else."""
    chosen = request.config.stash.get(TRIAL, Trial())
    return Trial(long=chosen.long, seed=chosen.seed, record=record_property)
