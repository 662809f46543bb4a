"""The polarisation loss keeps the contract of layers, the monitor that of monitors."""

from muse_core.testing import LayerSuite, MonitorSuite


class TestPolarisation(LayerSuite):
    name = "polarisation"


class TestWatchingOnly(LayerSuite):
    name = "polarisation"
    options = {"start": 0.0, "end": 0.0}


class TestGates(MonitorSuite):
    name = "gate-ablation"


class TestCollapse(MonitorSuite):
    name = "gate-collapse"
