"""Short convolutions on a GPU against the torch backend in float64 on the same rounded inputs, plain and compiled."""

import pytest
import torch

from muse_kernels import causal_convolution, short_convolution
from muse_kernels.torch import causal_convolution as sums
from muse_kernels.torch import short_convolution as by_torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

BOTH = pytest.mark.parametrize("heads", [(), (6, 48)], ids=["alone", "heads"])
"""The convolution alone, and heads and their key channels."""


def problem(tokens, heads, dtype, span, carried, resets):
    """(function, float64 function), leaves and resets; x lies within wider rows."""
    random = torch.Generator().manual_seed(tokens)
    channels = heads[0] * (2 * heads[1] + 24) if heads else 200
    x = torch.randn(3, tokens, channels + 8, generator=random).to("cuda", dtype)[..., :channels]
    taps = torch.randn(span, channels, generator=random).cuda()
    initial = torch.randn(3, span - 1, channels, generator=random).cuda() if carried else None
    starts = (torch.rand(3, tokens, generator=random) < 0.1).cuda() if resets else None
    pair = (short_convolution, by_torch) if heads else (causal_convolution, sums)
    return pair, (x, taps, initial), starts


def results(function, leaves, starts, heads, dtype=None):
    leaves = [x if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in leaves]
    found = function(*leaves[:2], *heads, initial=leaves[2], resets=starts)
    outputs = found if isinstance(found, tuple) else (found,)
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=random).bfloat16().to(y.device, y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x for x in leaves if x is not None], weights)]


def assert_near(actual, expected, tolerance):
    for place, (got, want) in enumerate(zip(actual, expected, strict=True)):
        error = ((got - want).norm() / want.norm()).item()
        assert error <= tolerance, f"result {place}: {error:.1e}"


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 5e-3), (torch.float32, 2e-6)])
@pytest.mark.parametrize(
    "heads, tokens, span, carried, resets",
    [
        ((), 1024, 4, False, False),
        ((), 333, 4, True, True),
        ((), 37, 7, False, True),
        ((), 64, 1, False, False),
        ((6, 48), 1024, 4, False, True),
        ((6, 48), 333, 4, True, True),
        ((3, 20), 130, 7, True, False),
        ((2, 16), 1, 4, True, False),
    ],
)
def test_near_float64(heads, dtype, tolerance, tokens, span, carried, resets):
    (function, exact), leaves, starts = problem(tokens, heads, dtype, span, carried, resets)
    expected = results(exact, leaves, starts, heads, torch.float64)
    assert_near(results(function, leaves, starts, heads), expected, tolerance)


@BOTH
@pytest.mark.parametrize("resets", (False, True))
def test_compiled_gradients_are_the_same(heads, resets):
    """Between operations that a compiler fuses, without a break in the graph."""
    (function, _), leaves, starts = problem(333, heads, torch.bfloat16, 4, True, resets)

    def between(x, taps, *sizes, **more):
        found = function(x * 1.5, taps, *sizes, **more)
        return tuple(y.float().sin() for y in (found if isinstance(found, tuple) else (found,)))

    compiled = torch.compile(between, fullgraph=True)
    expected = results(between, leaves, starts, heads)
    assert_near(results(compiled, leaves, starts, heads), expected, 5e-3)


@BOTH
def test_the_same_bits_twice(heads):
    (function, _), leaves, starts = problem(1024, heads, torch.bfloat16, 4, True, True)
    first, second = (results(function, leaves, starts, heads) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
