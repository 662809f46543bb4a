"""The suite of distributions catches what a plugin does on import, and what its metadata leaves out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from muse_core.plugins import load_plugins
from muse_core.testing.distributions import PluginSuite
from muse_core.testing.import_probe import settings

CHANGES = {
    "os.environ": "import os; os.environ['NEW'] = '1'",
    "working directory": "import os; os.chdir('/')",
    "sys.path": "import sys; sys.path.append('/nowhere')",
    "sys.excepthook": "import sys\ndef hook(*error): pass\nsys.excepthook = hook",
    "warning filters": "import warnings; warnings.simplefilter('ignore')",
    "root log handlers": "import logging; logging.getLogger().addHandler(logging.NullHandler())",
    "root log level": "import logging; logging.getLogger().setLevel(1)",
    "signal handlers": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "recursion limit": "import sys; sys.setrecursionlimit(5000)",
    "torch default dtype": "import torch; torch.set_default_dtype(torch.float64)",
    "torch default device": "import torch; torch.set_default_device('meta')",
    "torch threads": "import torch; torch.set_num_threads(torch.get_num_threads() + 1)",
    "torch gradients": "import torch; torch.set_grad_enabled(False)",
    "torch deterministic algorithms": "import torch; torch.use_deterministic_algorithms(True)",
    "torch matmul precision": "import torch; torch.set_float32_matmul_precision('medium')",
    "torch random state": "import torch; torch.manual_seed(1)",
    "torch anomaly mode": "import torch; torch.autograd.set_detect_anomaly(True)",
}
"""Setting → an implementation's module that changes it when it is imported."""

PLUGIN = """
import attrs
from muse_core.component import Component
from muse_core.hookspecs import hookimpl

@attrs.frozen(kw_only=True)
class Options:
    '''Options.'''

@hookimpl
def muse_layers():
    yield Component("wave", options=Options, implementation="{module}:Layer")
"""


def test_every_global_change_is_named(tmp_path) -> None:
    for number, change in enumerate(CHANGES.values()):
        (tmp_path / f"plugin_{number}.py").write_text(PLUGIN.format(module=f"layer_{number}"))
        (tmp_path / f"layer_{number}.py").write_text(change + "\nclass Layer: pass\n")
    modules = [f"plugin_{number}" for number in range(len(CHANGES))]
    command = [sys.executable, "-m", "muse_core.testing.import_probe", *modules]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    report = json.loads(ended.stdout)
    for setting, module in zip(CHANGES, modules):
        changed = report[module]["changed"]
        # Asking torch for determinism sets a variable and a filter besides.
        assert setting in changed and (len(changed) == 1 or "deterministic" in setting), f"{setting}: {changed}"
    assert all(report[module]["heavy"] == [] for module in modules)


def test_every_draw_is_seen_and_what_torchs_compiler_sets_is_not(monkeypatch) -> None:
    """Wherever in its numbers the generator stands: it makes them by hundreds, and most draws only count."""
    before = settings()
    for _ in range(3):
        torch.rand(1)
        after = settings()
        assert [name for name in before if before[name] != after[name]] == ["torch random state"]
        before = after
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "elsewhere")
    assert settings() == before
    monkeypatch.setenv("NEW", "1")
    assert settings()["os.environ"] != before["os.environ"]


@pytest.mark.parametrize(
    ("python", "requires", "complaint"),
    [
        (None, ("muse-core>=0.2,<0.3",), "pyproject.toml has no requires-python"),
        (">=3.11", ("torch",), "pyproject.toml does not depend on muse-core"),
        (">=3.11", ("muse-core>=0.1",), "muse-core>=0.1 has no upper bound"),
        (">=3.11", ("torch", "muse-core>=0.2,<0.3"), None),
    ],
    ids=["no python", "no core", "no bound", "right"],
)
def test_metadata_says_what_it_is_for(install, layer_source, python, requires, complaint) -> None:
    install("example-wave", layer_source("wave"), python=python, requires=requires)
    (loaded,) = [one for one in load_plugins(strict=False).plugins if one.plugin.distribution == "example-wave"]
    suite = PluginSuite()
    if complaint is None:
        suite.test_says_which_core_and_python_it_is_for(loaded)
        return
    with pytest.raises(AssertionError) as caught:
        suite.test_says_which_core_and_python_it_is_for(loaded)
    assert complaint in str(caught.value)
