"""The needle probe keeps the contract of monitors."""

from muse_core.testing import MonitorSuite


class TestNiahProbe(MonitorSuite):
    name = "niah-probe"
