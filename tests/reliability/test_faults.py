"""Fault points do nothing unless a test installs a plan."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import muse_core.training
from muse_core.fault_injection import POINTS, fault_point, installed


def test_without_a_plan_values_pass_unchanged():
    value = object()
    assert all(fault_point(point, value) is value for point in POINTS)


def test_a_plan_acts_inside_its_block_only():
    with installed({"loss": lambda loss: loss + 1.0}):
        assert fault_point("loss", 2.0) == 3.0
        assert fault_point("gradient", 2.0) == 2.0
    assert fault_point("loss", 2.0) == 2.0


def test_a_plan_ends_with_its_block_also_when_the_fault_raises():
    def fail(value):
        raise OSError("injected")

    with pytest.raises(OSError, match="injected"), installed({"restore": fail}):
        fault_point("restore", None)
    assert fault_point("restore", 1) == 1


def test_a_misspelt_point_is_refused():
    with (
        pytest.raises(ValueError, match="no such fault point: grad; there are"),
        installed({"grad": lambda value: value}),
    ):
        pass


def test_no_code_of_the_core_installs_a_plan():
    """Recipes are read by the core, so no recipe can reach one."""
    root = Path(muse_core.training.__file__).parent.parent
    for file in root.rglob("*.py"):
        if {"testing", "selftest"} & set(file.parts) or file.name == "faults.py":
            continue
        assert not any(
            isinstance(node, ast.ImportFrom)
            and node.module == "muse_core.fault_injection"
            and any(alias.name == "installed" for alias in node.names)
            for node in ast.walk(ast.parse(file.read_text()))
        ), file
