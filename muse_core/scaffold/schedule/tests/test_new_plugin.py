"""Values by hand, and the conformance suites."""

from __future__ import annotations

import pytest
from muse_core.testing import PluginSuite, ScheduleSuite, build_component


class TestConformance(ScheduleSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_half_way_a_square_is_a_quarter_above_the_final_rate() -> None:
    schedule = build_component("schedule", "new-plugin", power=2.0)
    steps, warmup, final = schedule.context.steps, schedule.context.warmup_steps, schedule.context.final_rate
    assert schedule.factor(warmup) == 1.0 and schedule.factor(steps - 1) == pytest.approx(final)
    middle = warmup + (steps - 1 - warmup) / 2
    assert schedule.factor(middle) == pytest.approx(final + (1 - final) / 4)
