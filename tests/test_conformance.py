"""Every installed component against the suite of its kind, the bundled ones without privilege."""

from __future__ import annotations

from pathlib import Path

import pytest

from muse_core.kinds import KINDS
from muse_core.testing.cases import installed
from muse_core.testing.distributions import PluginSuite
from muse_core.testing.filters import FilterSuite
from muse_core.testing.initializers import InitializerSuite
from muse_core.testing.kernel_backends import KernelBackendSuite
from muse_core.testing.layers import LayerSuite, MemoryLayerSuite
from muse_core.testing.models import ModelSuite
from muse_core.testing.monitors import MonitorSuite
from muse_core.testing.optimizers import OptimizerSuite
from muse_core.testing.potentials import PotentialSuite
from muse_core.testing.routers import RouterSuite
from muse_core.testing.schedules import ScheduleSuite
from muse_core.testing.sinks import SinkSuite
from muse_core.testing.sources import SourceSuite
from muse_core.testing.stages import StageSuite
from muse_core.testing.tokenizers import TokenizerSuite

ROOT = Path(__file__).parent.parent


class TestPlugins(PluginSuite):
    pass


class TestLayers(LayerSuite):
    pass


class TestMemoryLayers(MemoryLayerSuite):
    pass


class TestPotentials(PotentialSuite):
    pass


class TestFilters(FilterSuite):
    pass


class TestRouters(RouterSuite):
    pass


class TestInitializers(InitializerSuite):
    pass


class TestKernelBackends(KernelBackendSuite):
    pass


class TestMonitors(MonitorSuite):
    pass


class TestSources(SourceSuite):
    pass


class TestStages(StageSuite):
    pass


class TestOptimizers(OptimizerSuite):
    pass


class TestSchedules(ScheduleSuite):
    pass


class TestTokenizers(TokenizerSuite):
    pass


class TestSinks(SinkSuite):
    pass


class TestStack(ModelSuite):
    """The core's own model names no layer, so the layers are given here."""

    name = "stack"
    options = {
        "width": 16,
        "depth": 2,
        "block": [
            {"use": "resolvent", "heads": 4},
            {"use": "fast-weights", "name": "hebbian", "heads": 2, "period": 8, "filters": ["snr"]},
            {"use": "attention", "heads": 2, "at": "1:"},
            {"use": "feed-forward"},
        ],
    }
    test_compiles = None  # its layers are compiled above; a whole model takes a quarter of a minute


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_covered(kind: str) -> None:
    """A kind without a component would make its suite above an error, and a new one must get a suite here."""
    assert installed().rows(kind)
    others = {row.name for row in installed().rows("model")} - {TestStack.name}
    suites = "".join(file.read_text() for file in ROOT.glob("plugins/*/tests/*.py"))
    missing = {name for name in others if f'name = "{name}"' not in suites}
    assert not missing, f"give the models {sorted(missing)} a suite, here or in their plugin's tests"
