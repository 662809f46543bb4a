"""Gradients reach everything; that they are derivatives is a test of ``execution``."""

from __future__ import annotations

from torch import Tensor, nn

from muse_core.testing.cases import Case
from muse_core.testing.layer_suite.base import LayerBase, output_tensors, run
from muse_core.testing.modules import assert_reached, gradients_of, weighted
from muse_core.testing.sequences import Sequence


class LayerGradients(LayerBase):
    def total(self, layer: nn.Module, sequence: Sequence) -> Tensor:
        step = run(layer, sequence)
        return weighted(output_tensors(step)) + sum(loss.double() for loss in step.losses.values())

    def test_gradients_reach_every_parameter(self, case: Case) -> None:
        layer = self.lively(case).train()
        assert_reached(gradients_of(self.total(layer, self.sequence(case)), layer))

    def test_something_trains_from_the_first_step(self, case: Case) -> None:
        layer = self.double(case).train()
        gradients = gradients_of(self.total(layer, self.sequence(case)), layer)
        alive = [name for name, gradient in gradients.items() if gradient is not None and gradient.abs().max() > 0]
        assert alive or not gradients, "with the initial values every gradient is zero: a dead branch"
