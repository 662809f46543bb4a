"""Short convolutions against their definition in float64, on every backend that can run here."""

from importlib import import_module

import pytest
import torch

from muse_kernels import causal_convolution, dispatch, select_backend
from muse_kernels import short_convolution as public
from muse_kernels.reference import causal_convolution as sums
from muse_kernels.reference import short_convolution as reference
from muse_kernels.testing.places import assert_near, functions, results
from muse_kernels.torch import short_convolution as by_torch

DOUBLE = {"dtype": torch.float64, "device": "cpu"}
EVERYWHERE = pytest.mark.parametrize("place", functions("short_convolution"))
ALONE = pytest.mark.parametrize("place", functions("causal_convolution"))


@pytest.fixture
def poisoned():
    """Memory that an operation allocates and does not write reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def convolved(function, heads: int, key_width: int):
    """Of the tensors alone, and of resets."""

    def call(x, taps, initial, resets=None):
        return function(x, taps, heads, key_width, initial=initial, resets=resets)

    return call


def alone(function):
    """As `convolved`, of a convolution without heads."""

    def call(x, taps, initial, resets=None):
        return (function(x, taps, initial=initial, resets=resets),)

    return call


def of_a_penalty(call, dtype, device):
    """Gradients of the squares of gradients, where a document starts within a row."""
    starts = torch.tensor([[False, False, True, False, False], [True] + [False] * 4])
    leaves = [x.to(device, dtype).requires_grad_() for x in draw(5, 20, 3)]
    outputs = call(*leaves, starts.to(device))
    first = torch.autograd.grad(sum(y.pow(3).sum() for y in outputs), leaves, create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))


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
def test_equals_its_definition(place, heads, key_width, value_width, span, tokens, carried, resets, poisoned):
    function, dtype, device, tolerance = place
    leaves = draw(tokens, heads * (2 * key_width + value_width), span, carried)
    starts = torch.rand(2, tokens, generator=torch.Generator().manual_seed(2)) < 0.3 if resets else None
    expected = results(convolved(reference, heads, key_width), leaves, **DOUBLE, resets=starts)
    actual = results(convolved(function, heads, key_width), leaves, dtype, device, resets=starts)
    assert_near(actual, expected, tolerance)


@EVERYWHERE
@pytest.mark.parametrize("carried", (False, True))
def test_several_blocks_of_stretches_in_a_program(place, carried, monkeypatch):
    """Two rows of several stretches, and groups of channels, where one program takes all tokens of a group."""
    function, dtype, device, tolerance = place
    if dtype == torch.float32:
        place = import_module("muse_kernels.triton.short_convolution.operator")
        monkeypatch.setattr(place, "BACKWARD", place.BACKWARD._replace(programs=1))
    leaves = draw(70, 114, 3, carried)
    starts = torch.rand(2, 70, generator=torch.Generator().manual_seed(2)) < 0.1
    expected = results(convolved(reference, 2, 20), leaves, **DOUBLE, resets=starts)
    assert_near(results(convolved(function, 2, 20), leaves, dtype, device, resets=starts), expected, tolerance)


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


@EVERYWHERE
def test_strides_of_the_other_operands(place):
    """Forward and backward, of taps, carried inputs and resets that lie apart, and of the same start in all rows."""
    function, dtype, device, tolerance = place
    leaves = draw(6, 24, 3)
    starts = torch.rand(6, 2, generator=torch.Generator().manual_seed(2)) < 0.3

    def apart(function, starts):
        turn = lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)  # noqa: E731
        return lambda x, taps, initial: convolved(function, 2, 4)(x, turn(taps), turn(initial), starts.to(x.device))

    for resets in (starts.T, starts.T[:1].expand(2, 6)):
        expected = results(apart(reference, resets), leaves, **DOUBLE)
        assert_near(results(apart(function, resets), leaves, dtype, device), expected, tolerance)


@ALONE
@pytest.mark.parametrize("resets", (False, True))
@pytest.mark.parametrize("carried", (False, True))
@pytest.mark.parametrize("channels, span, tokens", ((70, 4, 150), (16, 4, 2), (33, 7, 20), (5, 2, 1)))
def test_alone_equals_its_definition(place, channels, span, tokens, carried, resets, poisoned):
    function, dtype, device, tolerance = place
    leaves = draw(tokens, channels, span, carried)
    starts = torch.rand(2, tokens, generator=torch.Generator().manual_seed(2)) < 0.3 if resets else None
    expected = results(alone(sums), leaves, **DOUBLE, resets=starts)
    assert_near(results(alone(function), leaves, dtype, device, resets=starts), expected, tolerance)


@ALONE
def test_alone_second_derivative_strides_one_tap_and_no_rows(place):
    function, dtype, device, tolerance = place
    expected = of_a_penalty(alone(sums), **DOUBLE)
    assert_near(of_a_penalty(alone(function), dtype, device), expected, 20 * tolerance)
    x, taps, _ = (t if t is None else t.to(device, dtype) for t in draw(6, 24, 1, carried=False))
    wide = torch.cat((x, x), dim=-1)[..., 24:].transpose(0, 1).contiguous().transpose(0, 1)
    assert_near([function(wide, taps)], [x * taps], tolerance)
    assert function(x[:0], taps).shape == (0, 6, 24)


@ALONE
def test_alone_in_a_compiled_graph(place):
    """Gradients through what a compiler makes of what stands around it, in one graph."""
    _, dtype, device, tolerance = place
    function = import_module(f"muse_kernels.{'triton' if dtype == torch.float32 else 'torch'}").causal_convolution
    leaves = [t.to(device, dtype).requires_grad_() for t in draw(9, 24, 4)]
    resets = torch.zeros(2, 9, dtype=torch.bool, device=device)
    resets[0, 3] = True

    def around(x, taps, initial):
        return function(x.exp(), taps, initial=initial, resets=resets).sin()

    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    found, due = (call(*leaves) for call in (compiled, around))
    assert_near(
        [found, *torch.autograd.grad(found.square().sum(), leaves)],
        [due, *torch.autograd.grad(due.square().sum(), leaves)],
        tolerance,
    )


def test_alone_errors_name_the_argument():
    x, taps, initial = draw(6, 24, 3)
    with pytest.raises(ValueError, match=r"causal_convolution: taps must be \(S, 24\)"):
        causal_convolution(x, taps[:, :5])
    with pytest.raises(ValueError, match=r"causal_convolution: initial must be \(2, 2, 24\), got \(2, 1, 24\)"):
        causal_convolution(x, taps, initial=initial[:, :1])
    with pytest.raises(ValueError, match="span up to 16 wide, not 17"):
        select_backend(dispatch.KernelRequest("causal_convolution", "cuda", "bfloat16", {"span": 17}), "triton")


def test_queries_and_keys_have_length_one():
    query, key, value = convolved(public, 2, 4)(*draw(6, 30, 3))
    assert (query.shape, key.shape, value.shape) == ((2, 6, 2, 4), (2, 6, 2, 4), (2, 6, 2, 7))
    for part in (query, key):
        torch.testing.assert_close(part.norm(dim=-1), torch.ones_like(part[..., 0]))


@pytest.mark.parametrize("carried", (False, True))
def test_second_derivative_by_differences(carried):
    leaves = [x if x is None else x.requires_grad_() for x in draw(4, 6, 3, carried)]
    starts = torch.tensor([[False, False, True, False], [False] * 4])
    assert torch.autograd.gradgradcheck(lambda *given: convolved(by_torch, 1, 2)(*given, starts), leaves)


@EVERYWHERE
def test_second_derivative(place):
    function, dtype, device, tolerance = place
    expected = of_a_penalty(convolved(reference, 2, 3), **DOUBLE)
    assert_near(of_a_penalty(convolved(function, 2, 3), dtype, device), expected, 20 * tolerance)


def test_a_second_derivative_is_the_torch_backends_too():
    request = dispatch.KernelRequest("short_convolution", "cpu", "float64", {}, frozenset({"double_backward"}))
    assert select_backend(request, "torch").backend == "torch" and select_backend(request).backend == "native"


def test_errors_name_the_argument():
    x, taps, initial = draw(6, 24, 3)
    with pytest.raises(ValueError, match=r"x \(2, 6, 24\) does not hold 5 heads"):
        public(x, taps, 5, 4)
    with pytest.raises(ValueError, match=r"x must have a token at least, got \(B, N, C\) = \(2, 0, 24\)"):
        public(x[:, :0], taps, 2, 4, initial=initial)
    with pytest.raises(ValueError, match=r"taps must be \(S, 24\)"):
        public(x, taps[:, :5], 2, 4)
    with pytest.raises(ValueError, match=r"initial must be \(2, 2, 24\), got \(2, 1, 24\)"):
        public(x, taps, 2, 4, initial=initial[:, :1])
    with pytest.raises(ValueError, match=r"resets must be bool \(2, 6\)"):
        public(x, taps, 2, 4, resets=torch.zeros(2, 5, dtype=torch.bool))
