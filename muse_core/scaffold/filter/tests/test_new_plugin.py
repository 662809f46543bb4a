"""The bound that the filter keeps, and the conformance suites."""

from __future__ import annotations

import torch
from muse_core.contracts import Period
from muse_core.testing import FilterSuite, PluginSuite, build_component


class TestConformance(FilterSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_weights_that_outgrow_their_usual_size_are_scaled_to_the_bound() -> None:
    fade = build_component("filter", "new-plugin", factor=1.5, memory=0.5)
    period = Period(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, dtype=torch.bool))
    small, large = torch.ones(1, 1, 3, 3), 99 * torch.ones(1, 1, 3, 3)
    kept, state, _ = fade(small, small, period, None)
    torch.testing.assert_close(kept, small)
    scaled, _, metrics = fade(small, large, period, state)
    torch.testing.assert_close(scaled, torch.full_like(large, 1.5 * 50))  # usual is the mean of 1 and 99
    assert metrics["share_scaled"] == 1
