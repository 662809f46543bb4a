"""Feed-forward layers: sizes, formulas, token by token."""

import pytest
import torch
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.testing import build_component


def build(width=24, **options):
    return build_component("layer", "feed-forward", options, width=width, dtype="float64").double()


FORMULAS = {
    "swiglu": lambda h: F.silu(h[..., h.shape[-1] // 2 :]) * h[..., : h.shape[-1] // 2],
    "gelu": F.gelu,
    "relu-squared": lambda h: h.clamp(min=0) ** 2,
}


@pytest.mark.parametrize("activation", list(FORMULAS))
def test_formula_and_gradients(activation):
    layer = build(activation=activation)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    step = layer(x, None, {}, Tokens(torch.arange(5).expand(2, -1)))
    expected = FORMULAS[activation](x @ layer.input.weight.T) @ layer.output.weight.T
    torch.testing.assert_close(step.update, expected)
    step.update.square().sum().backward()
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in layer.parameters())


def test_swiglu_costs_what_four_times_the_width_costs_without_a_gate():
    def count(**options):
        return sum(p.numel() for p in build(width=192, **options).parameters())

    assert count() == count(activation="gelu", multiple=4.0) == 8 * 192**2


def test_hidden_units_are_a_multiple_of_eight():
    assert build(multiple=0.01).output.in_features == 8
    assert build(multiple=1.5).output.in_features == 32


def test_a_token_sees_itself_only():
    layer = build()
    x = torch.randn(1, 6, 24, dtype=torch.float64, requires_grad=True)
    layer(x, None, {}, Tokens(torch.arange(6)[None])).update[:, 3].sum().backward()
    assert (x.grad[0].abs().amax(-1) > 0).tolist() == [False, False, False, True, False, False]
