"""Feed-forward layers: sizes, formulas, token by token."""

import pytest
import torch
from attrs import evolve
from muse_baseline.feed_forward import FeedForward
from muse_baseline.options import FeedForwardOptions
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.model.context import Context
from muse_core.model.kernels import BoundKernels


def build(options, width=24):
    torch.manual_seed(0)
    context = Context(
        width=width,
        depth=2,
        block=0,
        name="blocks.0.feed-forward",
        sequence_length=32,
        generator=torch.Generator().manual_seed(0),
        kernels=BoundKernels((), device="cpu", dtype="float64"),
        construct=lambda use, context: None,
    )
    return FeedForward(options, context).double()


FORMULAS = {
    "swiglu": lambda h: F.silu(h[..., h.shape[-1] // 2 :]) * h[..., : h.shape[-1] // 2],
    "gelu": F.gelu,
    "relu-squared": lambda h: h.clamp(min=0) ** 2,
}


@pytest.mark.parametrize("activation", list(FORMULAS))
def test_formula_and_gradients(activation):
    layer = build(FeedForwardOptions(activation=activation))
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    step = layer(x, None, {}, Tokens(torch.arange(5).expand(2, -1)))
    expected = FORMULAS[activation](x @ layer.input.weight.T) @ layer.output.weight.T
    torch.testing.assert_close(step.update, expected)
    step.update.square().sum().backward()
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in layer.parameters())


def test_swiglu_costs_what_four_times_the_width_costs_without_a_gate():
    def count(**options):
        return sum(p.numel() for p in build(FeedForwardOptions(**options), width=192).parameters())

    assert count() == count(activation="gelu", multiple=4.0) == 8 * 192**2


def test_hidden_units_are_a_multiple_of_eight():
    assert build(evolve(FeedForwardOptions(), multiple=0.01)).output.in_features == 8
    assert build(evolve(FeedForwardOptions(), multiple=1.5)).output.in_features == 32


def test_a_token_sees_itself_only():
    layer = build(FeedForwardOptions())
    x = torch.randn(1, 6, 24, dtype=torch.float64, requires_grad=True)
    layer(x, None, {}, Tokens(torch.arange(6)[None])).update[:, 3].sum().backward()
    assert (x.grad[0].abs().amax(-1) > 0).tolist() == [False, False, False, True, False, False]
