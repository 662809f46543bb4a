"""The short convolution against its definition in float64, on every backend that can run here."""

import pytest
import torch

from muse_kernels import chosen, dispatch
from muse_kernels import short_convolution as public
from muse_kernels.reference import short_convolution as reference
from muse_kernels.testing.places import assert_near, functions, results

DOUBLE = {"dtype": torch.float64, "device": "cpu"}
EVERYWHERE = pytest.mark.parametrize("place", functions("short_convolution"))


def convolved(function, heads: int, key_width: int):
    """Of the tensors alone, and of resets."""

    def call(x, taps, initial, resets=None):
        return function(x, taps, heads, key_width, initial=initial, resets=resets)

    return call


def draw(tokens: int, channels: int, span: int, carried: bool = True) -> list[torch.Tensor | None]:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return [normal(2, tokens, channels), normal(span, channels), normal(2, span - 1, channels) if carried else None]


@EVERYWHERE
@pytest.mark.parametrize("resets", (False, True))
@pytest.mark.parametrize("carried", (False, True))
@pytest.mark.parametrize(
    "heads, key_width, value_width, span, tokens", ((2, 5, 7, 4, 150), (1, 16, 16, 4, 2), (3, 4, 33, 2, 3))
)
def test_equals_its_definition(place, heads, key_width, value_width, span, tokens, carried, resets):
    function, dtype, device, tolerance = place
    leaves = draw(tokens, heads * (2 * key_width + value_width), span, carried)
    starts = torch.rand(2, tokens, generator=torch.Generator().manual_seed(2)) < 0.3 if resets else None
    expected = results(convolved(reference, heads, key_width), leaves, **DOUBLE, resets=starts)
    actual = results(convolved(function, heads, key_width), leaves, dtype, device, resets=starts)
    assert_near(actual, expected, tolerance)


@EVERYWHERE
def test_in_pieces(place):
    """What is carried are the last inputs, zero before the document that runs on."""
    function, dtype, device, tolerance = place
    call = convolved(function, 2, 4)
    x, taps, initial = (t.to(device, dtype) for t in draw(9, 24, 4))
    resets = torch.zeros(2, 9, dtype=torch.bool, device=device)
    resets[0, 3] = True
    whole = call(x, taps, initial, resets)
    between = x[:, 2:5].clone()
    between[0, 0] = 0
    first, second = call(x[:, :5], taps, initial, resets[:, :5]), call(x[:, 5:], taps, between)
    assert_near([torch.cat(parts, dim=1) for parts in zip(first, second, strict=True)], list(whole), tolerance)


@EVERYWHERE
def test_one_tap_zero_lengths_and_no_rows(place):
    function, dtype, device, tolerance = place
    call = convolved(function, 2, 4)
    x, taps, _ = draw(5, 24, 1, carried=False)
    x[0, 1] = 0
    expected = results(convolved(reference, 2, 4), [x, taps, None], **DOUBLE)
    assert_near(results(call, [x, taps, None], dtype, device)[:3], expected[:3], tolerance)
    assert [part.shape for part in call(x[:0].to(device, dtype), taps.to(device, dtype), None)] == [(0, 5, 2, 4)] * 3


@EVERYWHERE
def test_strides(place):
    function, dtype, device, tolerance = place
    x, taps, initial = (t.to(device, dtype) for t in draw(6, 24, 3))
    expected = list(convolved(function, 2, 4)(x, taps, initial))
    apart = torch.cat((x, x), dim=-1)[..., 24:].transpose(0, 1).contiguous().transpose(0, 1)
    assert_near(list(convolved(function, 2, 4)(apart, taps, initial)), expected, tolerance)


def test_queries_and_keys_have_length_one():
    query, key, value = convolved(public, 2, 4)(*draw(6, 30, 3))
    assert (query.shape, key.shape, value.shape) == ((2, 6, 2, 4), (2, 6, 2, 4), (2, 6, 2, 7))
    for part in (query, key):
        torch.testing.assert_close(part.norm(dim=-1), torch.ones_like(part[..., 0]))


def test_a_second_derivative_is_the_reference_s_alone():
    request = dispatch.Request("short_convolution", "cpu", "float64", {}, frozenset({"double_backward"}))
    assert chosen(request).backend == "reference"


def test_errors_name_the_argument():
    x, taps, initial = draw(6, 24, 3)
    with pytest.raises(ValueError, match=r"x \(2, 6, 24\) does not hold 5 heads"):
        public(x, taps, 5, 4)
    with pytest.raises(ValueError, match=r"taps must be \(S, 24\)"):
        public(x, taps[:, :5], 2, 4)
    with pytest.raises(ValueError, match=r"initial must be \(2, 2, 24\), got \(2, 1, 24\)"):
        public(x, taps, 2, 4, initial=initial[:, :1])
    with pytest.raises(ValueError, match=r"resets must be bool \(2, 6\)"):
        public(x, taps, 2, 4, resets=torch.zeros(2, 5, dtype=torch.bool))
