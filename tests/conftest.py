"""Plugins that a test makes up: real distributions on sys.path, found by their metadata like any installed one."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# No test fails because a machine is busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

os.environ.pop("COLUMNS", None)  # workers of pytest-xdist have one; commands print as into a pipe unless a test sets it
os.environ.setdefault("MUSE_REPORT", "0")  # a report takes seconds; the tests of reports ask for it


def pytest_collection_finish() -> None:
    """What libraries and collected tests hold stays to the end: each collection of garbage would look through it, which
    is a fifth of the time that torch.compile takes to trace a layer."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of encoded text for all tests of the session and all workers of pytest-xdist, for MUSE_CACHE: to encode
    the bundled text takes seconds."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """For models so small that threads cost more than they save."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_recipe(cache: Path) -> dict[str, Any]:
    """A recipe table: attention and a memory with a neutral filter on real text, trained in a second."""
    return {
        "name": "small",
        "seed": 7,
        "data": {"use": "state-of-the-union", "tokenizer": "bytes", "cache": str(cache)},
        "model": {
            "width": 32,
            "depth": 1,
            "block": [
                {"use": "attention", "heads": 2},
                {"use": "fast-weights", "heads": 2, "period": 32,
                 "filters": [{"use": "snr", "gamma_boost": 1.0, "rate_boost": 1.0}]},
            ],
        },
        "train": {"steps": 10, "batch_size": 4, "sequence_length": 64, "warmup_steps": 2, "device": "cpu",
                  "precision": "fp32", "log_every": 2},
        "evaluate": {"every": 100, "tokens": 640, "final_tokens": 1280},
    }


@pytest.fixture(scope="session")
def finished_run(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A finished run of ``small_recipe``; tests must not change it."""
    import muse_core

    folder = tmp_path_factory.mktemp("finished") / "run"
    muse_core.train(small_recipe, run_dir=folder, quiet=True)
    return folder


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
