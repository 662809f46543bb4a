"""Expected failures are strict, and a suite without a case is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import attrs
import pytest

from muse_core.testing import warm
from muse_core.testing.cases import alternatives, cases_of, installed

MODULE = """
from muse_core.testing import Suite

class {name}(Suite):
    kind = "stage"
    expected_failures = {expected}
    exclude = {exclude}

    def test_always_passes(self, case):
        pass

    def test_always_fails(self, case):
        assert False
"""


def outcome(folder: Path, *, exclude: tuple[str, ...] = (), expected: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and output of pytest for a suite of stages with one passing and one failing test."""
    (folder / "test_suite.py").write_text(MODULE.format(name="TestSuite", exclude=exclude, expected=expected or {}))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "always", "test_suite.py"]
    ended = warm.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return ended.returncode, ended.stdout


def test_a_declared_failure_is_accepted(tmp_path: Path) -> None:
    status, printed = outcome(tmp_path, expected={"test_always_fails": "shown here"})
    assert status == pytest.ExitCode.OK, printed
    stages = installed().rows("stage")
    count = sum(len(cases_of(row, tmp_path)) for row in stages)
    assert len(stages) >= 3 and f"{count} xfailed" in printed, printed  # train, evaluate, convert and those of plugins


def test_a_declared_failure_that_passes_is_an_error(tmp_path: Path) -> None:
    reasons = {"test_always_fails": "shown here", "test_always_passes": "it does not"}
    status, printed = outcome(tmp_path, expected=reasons)
    assert status == pytest.ExitCode.TESTS_FAILED, printed
    assert "XPASS(strict)" in printed


def test_a_declaration_without_its_test_is_an_error(tmp_path: Path) -> None:
    status, printed = outcome(tmp_path, expected={"test_misspelt": "no such test"})
    assert status == pytest.ExitCode.USAGE_ERROR, printed


def test_a_suite_without_a_case_is_an_error(tmp_path: Path) -> None:
    status, printed = outcome(tmp_path, exclude=tuple(row.name for row in installed().rows("stage")))
    assert status == pytest.ExitCode.INTERRUPTED, printed
    assert "no stage to test is installed" in printed


def test_every_option_of_few_values_makes_its_cases() -> None:
    """A mode that ``in_`` states was never run; of hundreds of sizes none is a mode."""

    @attrs.frozen(kw_only=True)
    class Options:
        bias: bool = True
        form: Literal["plain", "gated"] = "plain"
        gate: str = attrs.field(default="none", validator=attrs.validators.in_(["none", "scalar", "full"]))
        taps: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.in_((2, 4))))
        size: int = attrs.field(default=1, validator=attrs.validators.in_(range(1, 100)))

    assert list(alternatives(Options)) == [
        {"bias": False}, {"form": "gated"}, {"gate": "scalar"}, {"gate": "full"}, {"taps": 2}, {"taps": 4}]
