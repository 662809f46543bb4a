"""The conformance suite of plugin distributions: what importing one does, and what its metadata says."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any, ClassVar

import pytest
from packaging.requirements import Requirement

from muse_core.plugins import Loaded
from muse_core.testing.cases import installed


@functools.cache
def import_report(modules: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What importing each module does, from one process for all of them; see ``import_probe``."""
    command = [sys.executable, "-m", "muse_core.testing.import_probe", *modules]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    report: dict[str, dict[str, Any]] = json.loads(ended.stdout)
    return report


class PluginSuite:
    """A distribution loads without a problem, without torch and without side effects.

    ``distribution`` names one; None takes every installed plugin.
    """

    distribution: ClassVar[str | None] = None
    expected_failures: ClassVar[Mapping[str, str]] = {}
    conformance: ClassVar[bool] = True

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "plugin" not in metafunc.fixturenames:
            return
        plugins = [
            loaded for loaded in installed().plugins if self.distribution in (None, loaded.plugin.distribution)
        ]
        if not plugins:
            raise pytest.UsageError(f"{type(self).__name__}: no distribution {self.distribution or ''} is installed")
        metafunc.parametrize("plugin", plugins, ids=[loaded.plugin.distribution for loaded in plugins])

    def report(self, plugin: Loaded) -> dict[str, Any]:
        if self.distribution is not None:
            return import_report((plugin.plugin.module,))[plugin.plugin.module]
        modules = tuple(loaded.plugin.module for loaded in installed().plugins)
        return import_report(modules)[plugin.plugin.module]

    def test_loads_without_a_problem(self, plugin: Loaded) -> None:
        assert not plugin.problems, "\n".join(map(str, plugin.problems))
        assert plugin.rows, f"{plugin.plugin.label} registers nothing"

    def test_listing_it_imports_nothing_heavy(self, plugin: Loaded) -> None:
        report = self.report(plugin)
        assert "raised" not in report, f"importing it raised {report['raised']}"
        heavy = ", ".join(report["heavy"])
        assert not heavy, f"imports {heavy} when it is listed - import it in the implementation's module only"

    def test_importing_its_implementations_changes_nothing_global(self, plugin: Loaded) -> None:
        report = self.report(plugin)
        assert "raised" not in report, f"importing it raised {report['raised']}"
        assert not report["changed"], f"changes {', '.join(report['changed'])}"

    def test_says_which_core_and_python_it_is_for(self, plugin: Loaded) -> None:
        found = metadata.distribution(plugin.plugin.distribution)
        assert found.metadata["Requires-Python"], "pyproject.toml has no requires-python"
        if plugin.plugin.distribution == "muse-core":
            return
        requirements = [Requirement(line) for line in found.requires or []]
        core = [requirement for requirement in requirements if requirement.name == "muse-core"]
        assert core, "pyproject.toml does not depend on muse-core"
        bounded = any(part.operator in ("<", "<=", "==", "~=") for part in core[0].specifier)
        assert bounded, f"{core[0]} has no upper bound on the minor version"
