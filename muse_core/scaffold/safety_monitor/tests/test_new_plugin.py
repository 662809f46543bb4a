"""What the monitor lets pass, and the conformance suites."""

from __future__ import annotations

from muse_core.contracts import Action
from muse_core.testing import MonitorSuite, PluginSuite, build_component


class TestConformance(MonitorSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_a_spike_is_skipped_and_a_new_level_is_learned() -> None:
    monitor = build_component("safety monitor", "new-plugin", factor=10.0)
    assert monitor.judge(0, {"new-plugin/largest_max": 1.0}).action is Action.CONTINUE
    spike = monitor.judge(1, {"new-plugin/largest_max": 50.0})
    assert spike.action is Action.SKIP and "50" in spike.reason
    later = [monitor.judge(step, {"new-plugin/largest_max": 50.0}).action for step in range(2, 40)]
    assert later[-1] is Action.CONTINUE
