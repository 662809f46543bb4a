"""Plugins that a test makes up: real distributions on sys.path, found by their metadata like any installed one."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MUSE_REPORT", "0")  # a report takes seconds; the tests of reports ask for it


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """``install(distribution, source, …)`` puts a distribution with one plugin module into a folder on sys.path and
    returns the module's name."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def make(
        distribution: str,
        source: str,
        *,
        version: str = "1.0.0",
        requires: tuple[str, ...] = ("muse-core>=0.2,<0.3",),
        group: str = "muse.v2",
        key: str | None = None,
        value: str | None = None,
        python: str | None = None,
    ) -> str:
        module = distribution.replace("-", "_") + "_plugin"
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
        lines += [f"Requires-Python: {python}"] if python else []
        (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires)]) + "\n")
        entry = f"[{group}]\n{key or distribution} = {value or module}\n"
        (info / "entry_points.txt").write_text(entry)
        importlib.invalidate_caches()
        return module

    make.site = site
    yield make
    for name in set(sys.modules) - before:
        if name.endswith("_plugin"):
            del sys.modules[name]


LAYER = """
    import attrs
    from muse_core.component import Component
    from muse_core.hookspecs import hookimpl

    @attrs.frozen(kw_only=True)
    class Options:
        '''A layer.'''
        size: int = attrs.field(default=4, validator=attrs.validators.ge(1))
        '''Its size.'''

    @hookimpl
    def muse_layers():
        yield Component("{name}", options=Options, implementation="{module}:Layer")
"""


@pytest.fixture
def layer_source() -> Callable[..., str]:
    """Source of a plugin module that registers one layer with an option ``size``."""
    return lambda name, module="nowhere": LAYER.format(name=name, module=module)
