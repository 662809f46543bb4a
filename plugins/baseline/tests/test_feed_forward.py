"""Feed-forward layers: sizes, formulas, token by token."""

import pytest
import torch
from muse_baseline.options import FeedForwardOptions
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


def test_a_convolution_mixes_what_the_layer_reads_within_a_document():
    layer = build(convolution=3)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    resets = torch.zeros(2, 7, dtype=torch.bool)
    resets[1, 4] = True
    taps = torch.stack(list(layer.convolution.taps))
    mixed = torch.zeros_like(x)
    for row in range(2):
        for t in range(7):
            for lag in range(3):
                if t - lag >= (4 if row == 1 and t >= 4 else 0):
                    mixed[row, t] += taps[lag] * x[row, t - lag]
    tokens = Tokens(torch.arange(7).expand(2, -1), resets=resets)
    step = layer(x, None, {}, tokens)
    plain = build()
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "convolution" not in name})
    torch.testing.assert_close(step.update, plain(mixed, None, {}, tokens).update)
    torch.testing.assert_close(step.state["inputs"], x[:, -2:])


def test_a_convolution_begins_as_what_it_reads():
    taps = torch.stack(list(build(width=4096, convolution=4).convolution.taps))
    torch.testing.assert_close(taps.mean(1), torch.tensor([1.0, 0, 0, 0]).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(taps.std(1), torch.full((4,), 0.1).double(), rtol=0, atol=0.01)


def test_tokens_of_a_row_lie_on_several_processes_without_a_convolution_only():
    assert FeedForwardOptions().undivided() is None
    assert "tokens before" in FeedForwardOptions(convolution=2).undivided()
