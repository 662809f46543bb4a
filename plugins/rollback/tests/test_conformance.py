"""The monitors keep the contract of monitors."""

from muse_core.testing import MonitorSuite


class TestRollback(MonitorSuite):
    name = "rollback"


class TestPerplexitySpike(MonitorSuite):
    name = "perplexity-spike"
