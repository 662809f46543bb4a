"""The layer suite names every parameter that learns nothing, not only the first."""

from __future__ import annotations

from torch import nn

from muse_core.testing.layers import LayerSuite
from tests.conformance.test_layer_suite import HasADeadBranch, Right, TraceOptions


class HasADeadLinear(Right):
    def __init__(self, options, context):
        super().__init__(options, context)
        self.gate = nn.Linear(3, 3)


def test_every_parameter_without_a_gradient_is_named(complaint) -> None:
    said = complaint(LayerSuite, HasADeadLinear, TraceOptions, "test_gradients_reach_every_parameter")
    assert said is not None and "no gradient reaches gate.weight, gate.bias" in said
    said = complaint(LayerSuite, HasADeadBranch, TraceOptions, "test_gradients_reach_every_parameter")
    assert said is not None and "the gradient of dynamics.logit, output.weight is zero everywhere" in said, said
