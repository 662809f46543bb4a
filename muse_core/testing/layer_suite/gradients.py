"""Gradients reach everything and are derivatives of what forward computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from muse_core.testing.cases import Case
from muse_core.testing.layer_suite.base import LayerBase, output_tensors, run
from muse_core.testing.modules import assert_reached, gradients_of, weighted
from muse_core.testing.sequences import Sequence

STEP = 1e-5
RELATIVE = 1e-6


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

    def test_gradients_are_the_derivative(self, case: Case) -> None:
        """Along a random direction of x and all parameters, against a fourth-order central difference."""
        layer, sequence = self.lively(case).eval(), self.sequence(case, documents=True)
        parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        leaves = [sequence.x.requires_grad_(), *parameters]
        generator = torch.Generator().manual_seed(11)
        directions = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in leaves]
        total = self.total(layer, sequence)
        if not total.requires_grad:
            pytest.skip("nothing to train")
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        predicted = sum((g * d).sum().item() for g, d in zip(gradients, directions) if g is not None)
        points = {}
        with torch.no_grad():
            for multiple in (-2, -1, 1, 2):
                for leaf, direction in zip(leaves, directions):
                    leaf += multiple * STEP * direction
                points[multiple] = self.total(layer, sequence).item()
                for leaf, direction in zip(leaves, directions):
                    leaf -= multiple * STEP * direction
        measured = (8 * (points[1] - points[-1]) - (points[2] - points[-2])) / (12 * STEP)
        assert abs(measured - predicted) <= RELATIVE * max(1.0, abs(measured), abs(predicted)), (
            f"autograd gives {predicted:.9g}, differences {measured:.9g}"
        )
