"""The example in every hook's docstring runs as it stands."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import pluggy
import pytest

from muse_core.component import Component
from muse_core.hookspecs import HOOK_OF_KIND, PROJECT, Hooks
from muse_core.kinds import KINDS
from muse_core.options.check import structural_faults


def example(hook: str) -> str:
    """The code after ``Example::`` in the docstring."""
    text = inspect.getdoc(getattr(Hooks, hook)) or ""
    _, found, rest = text.partition("Example::\n")
    assert found, f"{hook} has no example"
    code, found, _ = rest.partition("\nReturns:")
    assert found, f"{hook} does not say what it returns"
    return textwrap.dedent(code)


def test_every_kind_has_a_hook() -> None:
    assert tuple(HOOK_OF_KIND) == KINDS
    assert {name for name in vars(Hooks) if name.startswith("muse_")} == set(HOOK_OF_KIND.values())


def test_the_reference_page_lists_every_hook() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "hooks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z ]+) \| `(\w+)` \|", page, flags=re.MULTILINE))
    assert rows == HOOK_OF_KIND


@pytest.mark.parametrize(("kind", "hook"), HOOK_OF_KIND.items(), ids=KINDS)
def test_the_example_registers_a_component(kind: str, hook: str) -> None:
    module = type("ExampleModule", (), {})()
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(example(hook), f"<example of {hook}>", "exec"), namespace)
    setattr(module, hook, namespace[hook])
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(module)
    manager.check_pending()
    rows = [row for rows in getattr(manager.hook, hook)() for row in rows]
    assert rows and all(isinstance(row, Component) for row in rows)
    for row in rows:
        assert structural_faults(row.options) == [], kind
        assert (row.options.__doc__ or "").strip()
