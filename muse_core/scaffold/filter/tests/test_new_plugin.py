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
    filter_ = build_component("filter", "new-plugin", factor=2.0, memory=1 / 2)
    period = Period(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, dtype=torch.bool))
    small, large = torch.ones(1, 1, 3, 3), 100 * torch.ones(1, 1, 3, 3)
    kept, state, _ = filter_(small, small, period, None)
    torch.testing.assert_close(kept, small)
    scaled, state, measures = filter_(small, large, period, {"usual": torch.tensor([[1.0]])})
    torch.testing.assert_close(scaled, large)  # the usual size is already 50.5, and twice that is above 100
    strict = build_component("filter", "new-plugin", factor=1.5, memory=1 / 2)
    scaled, state, measures = strict(small, large, period, {"usual": torch.tensor([[1.0]])})
    torch.testing.assert_close(scaled, torch.full_like(large, 1.5 * 50.5))
    assert measures["share_scaled"] == 1
