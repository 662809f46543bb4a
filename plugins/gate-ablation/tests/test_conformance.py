"""The polarisation loss keeps the contract of layers, the monitor that of monitors; its defaults are taken by
tests/test_conformance.py."""

from muse_core.testing import LayerSuite, MonitorSuite


class TestWatchingOnly(LayerSuite):
    name = "polarisation"
    options = {"start": 0.0, "end": 0.0}


class TestGates(MonitorSuite):
    name = "gate-ablation"


class TestCollapse(MonitorSuite):
    name = "gate-collapse"
