"""Trace attention against its definition in float64, on every backend that can run here; its bound; its errors."""

import pytest
import torch

from muse_kernels import dispatch, select_backend
from muse_kernels import trace_attention as public
from muse_kernels.reference import trace_attention as reference
from muse_kernels.testing.places import functions, results
from muse_kernels.torch import trace_attention as by_torch
from muse_kernels.trace_arguments import Carried

DOUBLE = {"dtype": torch.float64, "device": "cpu"}
EVERYWHERE = pytest.mark.parametrize("place", functions("trace_attention"))


def draw(tokens, *, batch=2, heads=2, groups=2, key_width=5, value_width=3, size=0.8, carried=0, seed=0):
    """Query, key, value, bound, and what is carried in: keys, values and Q."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    bound = size * (0.5 + torch.rand(batch, tokens, heads, generator=random, dtype=torch.float64)).cumsum(1).sqrt()
    leaves = [normal(batch, tokens, heads, key_width), normal(batch, tokens, groups, key_width)]
    leaves += [normal(batch, tokens, groups, value_width), bound]
    if carried:
        leaves += [normal(batch, carried, groups, key_width), normal(batch, carried, groups, value_width)]
        leaves += [1 + normal(batch, heads).abs()]
    return leaves


def assert_near(actual, expected, tolerance):
    """Each within `tolerance` of the largest magnitude expected, or of 1 where that is more: the logits' gradients
    vanish where a query sees one token, and the bound's where it does nothing."""
    for place, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, place
        error = (a.to(e.device, e.dtype) - e).abs().max() / e.abs().max().clamp(min=1) if e.numel() else 0.0
        assert error <= tolerance, f"result {place}: {error:.1e}"


def starts(tokens, batch=2, share=0.2):
    return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(2)) < share


def called(function, **options):
    """Of the leaves alone; every output and what is carried on, without the slots' flags."""

    def call(query, key, value, bound, *carried, visible=None, resets=None):
        initial = Carried(carried[0], carried[1], visible, carried[2]) if carried else None
        traced, final = function(query, key, value, bound, initial=initial, resets=resets, **options)
        return (*traced, final.key, final.value, final.squares)

    return call


@EVERYWHERE
@pytest.mark.parametrize(
    "window, resets, carried", ((None, False, 0), (None, True, 9), (7, False, 9), (7, True, 0), (1, True, 9))
)
def test_equals_its_definition(place, window, resets, carried):
    function, dtype, device, tolerance = place
    leaves = draw(37, carried=carried, heads=4, seed=carried)
    options = {"resets": starts(37) if resets else None}
    if carried:
        options["visible"] = torch.arange(9) >= torch.tensor([[0], [4]])
    expected = results(called(reference, window=window), leaves, **DOUBLE, **options)
    actual = results(called(function, window=window), leaves, dtype, device, **options)
    assert_near(actual, expected, 3 * tolerance)  # the bound's gradient turns fast just beyond the knee


@EVERYWHERE
@pytest.mark.parametrize("knee, size", ((0.0, 0.6), (0.3, 0.05), (0.3, 0.6), (0.9, 0.6), (0.9, 100.0)))
def test_every_part_of_the_curve(place, knee, size):
    """Below the knee, across it and beyond."""
    function, dtype, device, tolerance = place
    leaves = draw(20, size=size, batch=1, groups=1)
    expected = results(called(reference, knee=knee), leaves, **DOUBLE)
    actual = results(called(function, knee=knee), leaves, dtype, device)
    free = size == 100.0 and knee > 0  # then the bound does nothing
    assert (expected[-1].abs().max() < 1e-12) == free
    assert_near(actual, expected, 4 * tolerance)


@EVERYWHERE
@pytest.mark.parametrize("tokens, key_width, value_width", ((1, 16, 16), (70, 64, 20), (33, 24, 33)))
def test_sizes(place, tokens, key_width, value_width):
    function, dtype, device, tolerance = place
    leaves = draw(tokens, batch=1, heads=2, groups=1, key_width=key_width, value_width=value_width)
    options = {"logit_scale": 0.3}
    expected = results(called(reference, **options), leaves, **DOUBLE)
    assert_near(results(called(function, **options), leaves, dtype, device), expected, tolerance)


@EVERYWHERE
@pytest.mark.parametrize("window", (None, 4))
def test_in_pieces(place, window):
    """Any split of a sequence gives the same, and gradients flow through what is carried."""
    function, dtype, device, tolerance = place
    resets = torch.zeros(2, 23, dtype=torch.bool)
    resets[0, 3] = resets[1, 11] = True

    def whole(query, key, value, bound, resets):
        return tuple(function(query, key, value, bound, window=window, resets=resets)[0])

    def pieces(*leaves, resets):
        carried, found = None, []
        for begin, end in ((0, 1), (1, 6), (6, 7), (7, 23)):
            parts = [x[:, begin:end] for x in leaves]
            traced, carried = function(*parts, window=window, initial=carried, resets=resets[:, begin:end])
            found.append(traced)
        assert window is None or carried.key.shape[1] == window - 1
        return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))

    leaves = draw(23)
    expected = results(whole, leaves, dtype, device, resets=resets)
    assert_near(results(pieces, leaves, dtype, device, resets=resets), expected, 2 * tolerance)


@EVERYWHERE
@pytest.mark.parametrize("knee, size", ((0.0, 0.7), (0.5, 0.1), (0.5, 3.0), (0.95, 0.7)))
def test_norm_stays_below_the_bound(place, knee, size):
    """Of every prefix of a document, also where the softmax picks one token a row, whose norm is √t, and for a bound
    that stays the same; and no row is scaled before the knee."""
    function, dtype, device, tolerance = place
    for sharp, grows in ((0.1, True), (30.0, True), (30.0, False)):
        query, key, value, bound = (x.to(device, dtype) for x in draw(60, size=size))
        bound = bound if grows else torch.full_like(bound, size)
        (_, scale, squares), _ = function(query * sharp, key, value, bound, knee=knee)
        own = squares.diff(dim=1, prepend=torch.zeros_like(squares[:, :1]))
        norm = (scale.square() * own).cumsum(1)
        assert (norm <= bound.square() * (1 + 1e-5)).all() and (norm <= squares * (1 + 1e-5)).all()
        assert (scale > 0).all() and (scale <= 1).all()
        free = squares <= knee * bound.square()
        assert (scale[free] == 1).all()
        assert (scale[squares > 1.01 * knee * bound.square()] < 1).all()


@EVERYWHERE
def test_logits_of_ten_thousand(place):
    """Rows of one token, of two alike, and of all alike, whatever the size of the logits."""
    function, dtype, device, _ = place
    query, key, value, bound = (x.to(device, dtype) for x in draw(40, batch=1, heads=1, groups=1, key_width=16))
    query, key = query.sign(), key.sign()
    key[:, 3], key[:, 4] = query[:, 10], -query[:, 10]
    leaves = [(x * s).requires_grad_() for x, s in ((query, 25.0), (key, 25.0), (value, 1.0), (bound, 1.0))]
    (output, scale, squares), _ = function(*leaves, logit_scale=1.0)
    logits = torch.einsum("bihk,bjhk->bhij", leaves[0], leaves[1])
    assert logits.max() == 1e4 and logits.min() == -1e4
    expected, _ = reference(*(x.double().cpu() for x in leaves), logit_scale=1.0)
    assert_near([output, scale, squares], list(expected), 1e-4 if dtype == torch.float32 else 1e-11)
    gradients = torch.autograd.grad(output.sum() + scale.sum(), leaves)
    assert all(x.isfinite().all() for x in (output, scale, squares, *gradients))


@EVERYWHERE
def test_strides_and_no_rows(place):
    function, dtype, device, tolerance = place
    leaves = [x.to(device, dtype) for x in draw(6, key_width=16, value_width=16)]
    resets = starts(6).to(device)
    expected = results(called(function), leaves, dtype, device, resets=resets)
    apart = lambda x: x.transpose(0, -1).contiguous().transpose(0, -1)  # noqa: E731
    actual = results(
        lambda *given, resets: called(function)(*map(apart, given), resets=apart(resets)), leaves, dtype, device,
        resets=resets,
    )  # fmt: skip
    assert_near(actual, expected, tolerance)
    assert function(*(x[:0] for x in leaves))[0].output.shape == (0, 6, 2, 16)


def test_second_derivative_by_differences():
    leaves = [x.requires_grad_() for x in draw(4, batch=1, groups=1, key_width=3, value_width=2, size=0.7)]
    resets = torch.tensor([[False, False, True, False]])
    assert torch.autograd.gradgradcheck(lambda *x: tuple(by_torch(*x, resets=resets)[0]), leaves)


@EVERYWHERE
def test_second_derivative(place):
    function, dtype, device, tolerance = place
    resets = torch.tensor([[False, False, True, False, False], [True] + [False] * 4])

    def penalty(function, dtype, device):
        leaves = [x.to(device, dtype).requires_grad_() for x in draw(5, size=0.7)]
        traced, _ = function(*leaves, resets=resets.to(device))
        first = torch.autograd.grad(sum(y.pow(3).sum() for y in traced), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    assert_near(penalty(function, dtype, device), penalty(reference, **DOUBLE), 50 * tolerance)


def test_backends():
    request = dispatch.KernelRequest("trace_attention", "cpu", "float64", {}, frozenset({"double_backward"}))
    assert select_backend(request).backend == "torch"
    wide = dispatch.KernelRequest("trace_attention", "cuda", "bfloat16", {"key": 192, "value": 64})
    assert "key up to 128 wide" in select_backend(wide).refusals["triton"]


def test_errors_name_the_argument():
    query, key, value, bound = draw(6, heads=4)
    with pytest.raises(ValueError, match=r"query must be \(B, N, H, K\) with a token at least, got \(2, 0, 4, 5\)"):
        public(query[:, :0], key[:, :0], value[:, :0], bound[:, :0])
    with pytest.raises(ValueError, match=r"key must be \(B, N, G, K\) beside query \(2, 6, 4, 5\), got \(2, 6, 2, 4\)"):
        public(query, key[..., :4], value, bound)
    with pytest.raises(ValueError, match="the 3 heads of query are not a multiple of the 2 of key"):
        public(query[:, :, :3], key, value, bound[..., :3])
    with pytest.raises(ValueError, match=r"value must be \(B, N, G, M\)"):
        public(query, key, value[:, :5], bound)
    with pytest.raises(ValueError, match=r"bound must be broadcastable to \(B, N, H\) .* got \(2, 5, 4\)"):
        public(query, key, value, bound[:, :5])
    with pytest.raises(ValueError, match=r"resets must be bool \(2, 6\)"):
        public(query, key, value, bound, resets=torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        public(query, key, value, bound, window=0)
    with pytest.raises(ValueError, match="knee must be at least 0 and below 1, got 1.0"):
        public(query, key, value, bound, knee=1.0)
    with pytest.raises(ValueError, match="logit_scale must be positive, got -1"):
        public(query, key, value, bound, logit_scale=-1)
    with pytest.raises(ValueError, match=r"initial must be \(key, value, visible, squares\)"):
        public(query, key, value, bound, initial=(key, value))
    _, final = public(query, key, value, bound)
    with pytest.raises(ValueError, match=r"initial squares must be \(2, 4\), got \(2, 3\)"):
        public(query, key, value, bound, initial=final._replace(squares=final.squares[:, :3]))
