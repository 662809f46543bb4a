"""Under which conditions a promise is put to the test. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import pytest

T = TypeVar("T")
SEED = 20260101
TRAINED = 340
"""Steps of the run that the fixture ``trained`` gives."""


@attrs.frozen(kw_only=True)
class Trial:
    """The fixture ``trial``."""

    long: bool = False
    seed: int = SEED
    """Of everything random in the test."""
    record: Callable[[str, Any], None] = lambda name, value: None

    def size(self, short: T, long: T) -> T:
        """The one for this form."""
        return long if self.long else short

    def say(self, figure: str) -> None:
        """What ``muse selftest`` prints beside the result."""
        self.record("figure", figure)


TRIAL = pytest.StashKey[Trial]()
"""Where a pytest plugin puts a trial of its own."""
