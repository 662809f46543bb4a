"""The base of the conformance suites: how a test class gets its cases, and what holds for every kind."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from muse_core.component import Component, load
from muse_core.errors import RecipeError
from muse_core.model.signatures import mismatch
from muse_core.options.check import documentation_faults, structural_faults
from muse_core.plugins import Registry
from muse_core.testing.building import build_component
from muse_core.testing.cases import Case, cases_of, installed, registered_cases

VARIANT = pytest.mark.variant
CASES = pytest.StashKey[dict[type, list[Case]]]()


def scratch(config: pytest.Config) -> Path:
    """A folder of its own for the files of one suite's examples, removed when pytest ends."""
    folder = tempfile.TemporaryDirectory(prefix="muse-conformance-")
    config.add_cleanup(folder.cleanup)
    return Path(folder.name)


class Suite:
    """Inherit from the suite of a kind in a test module, and pytest runs it::

        from muse_core.testing import LayerSuite

        class TestLeakyAverage(LayerSuite):
            name = "leaky-average"

    With ``name`` alone the cases are the defaults, each alternative of options that are bool, Literal or have the
    validator ``in_``, and the option class's ``examples``; with ``options`` the one case is that table; without
    ``name`` every installed component of the kind. A suite without a case fails. ``expected_failures`` maps the name of
    a test to the reason why it must fail; when it passes that is an error. ``"test_x[uneven]"`` means those of its
    variants with ``uneven`` in their name.
    """

    kind: ClassVar[str]
    name: ClassVar[str | None] = None
    options: ClassVar[Mapping[str, Any] | None] = None
    exclude: ClassVar[tuple[str, ...]] = ()
    """Without ``name``: components of the kind that another class runs."""
    expected_failures: ClassVar[Mapping[str, str]] = {}
    conformance: ClassVar[bool] = True
    """Marks suites for the pytest plugin."""

    @classmethod
    def cases(cls, folder: Path) -> list[Case]:
        if cls.name is None:
            return [case for case in registered_cases(cls.registry(), cls.kind, folder) if case.name not in cls.exclude]
        if cls.options is not None:
            return [Case(kind=cls.kind, name=cls.name, options=cls.options)]
        return cases_of(cls.registry().find(cls.kind, cls.name), folder, cls.name)

    @classmethod
    def registry(cls) -> Registry:
        """Where components are found: by default everything that is installed."""
        return installed()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" not in metafunc.fixturenames:
            return
        found = metafunc.config.stash.setdefault(CASES, {})
        if type(self) not in found:
            found[type(self)] = self.cases(scratch(metafunc.config))
        cases = found[type(self)]
        if not cases:
            raise pytest.UsageError(f"{type(self).__name__}: no {self.kind} to test is installed")
        parameters = [pytest.param(case, id=case.label, marks=[VARIANT] if case.derived else []) for case in cases]
        metafunc.parametrize("case", parameters)

    def build(self, case: Case, **changes: Any) -> Any:
        """The component in a small context; a variant that it refuses is skipped with its own words."""
        try:
            return build_component(case.kind, case.name, case.options, registry=self.registry(), **changes)
        except RecipeError as refusal:
            if case.derived:
                pytest.skip(f"refused: {refusal}")
            raise

    def component(self, case: Case) -> Component:
        return self.registry().find(case.kind, case.name).component

    def test_options_can_be_written_in_a_recipe(self, case: Case) -> None:
        faults = structural_faults(self.component(case).options)
        assert not faults, "\n".join(faults)

    def test_every_option_is_documented(self, case: Case) -> None:
        faults = documentation_faults(self.component(case).options)
        assert not faults, "\n".join(faults)

    def test_the_implementation_has_the_methods_of_its_kind(self, case: Case) -> None:
        component = self.component(case)
        difference = mismatch(case.kind, load(component.implementation))
        assert difference is None, difference
