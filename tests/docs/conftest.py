"""The writers of the site's pages, which stand in docs/ and are no part of any distribution."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def writers() -> ModuleType:
    sys.path.insert(0, str(DOCS))
    try:
        import writers
        import writers.repository
    finally:
        sys.path.remove(str(DOCS))
    return writers
