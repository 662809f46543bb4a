"""One update by hand, and the conformance suites."""

from __future__ import annotations

import torch
from muse_core.contracts import TrainedParameter
from muse_core.testing import OptimizerSuite, PluginSuite, build_component


class TestConformance(OptimizerSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_a_first_step_has_the_size_of_the_rate_in_every_entry() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    weight.grad = torch.tensor([0.001, -30.0])
    (optimizer,) = build_component("optimizer", "new-plugin").build({"bias": TrainedParameter(weight, "vector")})
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([1.0 - rate, -2.0 + rate]))
