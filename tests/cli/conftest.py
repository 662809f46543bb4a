"""Recipes for tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file tiny.toml with the module's RECIPE; its text is encoded once for all tests."""
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    path = tmp_path / "tiny.toml"
    path.write_text(request.module.RECIPE)
    return path
