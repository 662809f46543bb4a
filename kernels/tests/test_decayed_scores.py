"""Scores under a decay per channel against their definition in float64, on every backend that can run here."""

from functools import partial
from importlib import import_module

import pytest
import torch

from muse_kernels import DecayedScores, KernelRequest, debug, select_backend
from muse_kernels import decayed_scores as public
from muse_kernels.reference import decayed_scores as reference
from muse_kernels.testing.places import assert_near, functions, results
from muse_kernels.torch import decayed_scores as by_torch

DOUBLE = {"dtype": torch.float64, "device": "cpu"}
EVERYWHERE = pytest.mark.parametrize("place", functions("decayed_scores"))
REMOVING = pytest.mark.parametrize("removing", (False, True), ids=("writing alone", "removing"))


@pytest.fixture
def poisoned():
    """Memory that an operation allocates and does not write reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(tokens, width, removing, fastest=1.0, batch=2, heads=2):
    random = torch.Generator().manual_seed(tokens)

    def normal():
        return torch.randn(batch, tokens, heads, width, generator=random, dtype=torch.float64)

    decay = -fastest * torch.rand(batch, tokens, heads, width, generator=random, dtype=torch.float64)
    return [normal(), normal(), decay, *((0.3 * normal(), 0.3 * normal()) if removing else (None, None))]


def starts(tokens, batch=2):
    resets = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(2)) < 0.1
    resets[0, 0] = True
    return resets


def scored(function, chunk):
    """Of the tensors in order; results that are not None."""

    def call(query, key, log_decay, probe, insert, resets=None):
        found = function(query, key, log_decay, probe=probe, insert=insert, resets=resets, chunk=chunk)
        assert isinstance(found, DecayedScores) and all(x is None for x in found[4:]) == (probe is None)
        return tuple(x for x in found if x is not None)

    return call


@EVERYWHERE
@REMOVING
@pytest.mark.parametrize("resets", (False, True), ids=("one document", "documents"))
@pytest.mark.parametrize(
    "tokens, width, chunk", ((70, 5, 64), (64, 18, 64), (40, 20, 32), (23, 16, 16), (5, 4, 8), (3, 3, 2), (1, 2, 1))
)
def test_equals_its_definition(place, removing, resets, tokens, width, chunk, poisoned):
    """Several chunks, the last of them not whole, widths that are no power of two, and chunks shorter than a block."""
    function, dtype, device, tolerance = place
    heads = 1 if tokens > 30 else 2
    leaves = draw(tokens, width, removing, heads=heads)
    given = starts(tokens) if resets else None
    expected = results(scored(reference, chunk), leaves, **DOUBLE, resets=given)
    assert_near(results(scored(function, chunk), leaves, dtype, device, resets=given), expected, tolerance)


@EVERYWHERE
@pytest.mark.parametrize("width", (48, 72))
def test_several_tiles_of_channels(place, width):
    function, dtype, device, tolerance = place
    leaves = draw(50, width, True, batch=1, heads=1)
    expected = results(scored(reference, 64), leaves, **DOUBLE)
    assert_near(results(scored(function, 64), leaves, dtype, device), expected, tolerance)


@EVERYWHERE
@pytest.mark.parametrize("fastest", (60.0, 3e4))
def test_channels_that_forget_quickly(place, fastest):
    """Nothing overflows, as a quotient of decays would. Where all is forgotten no gradient of the decays is left, and
    what is found is the rounding of the terms that cancel in it, each a token times its gradient."""
    function, dtype, device, tolerance = place
    leaves = draw(40, 6, True, fastest, batch=1, heads=1)
    leaves = [x.to(torch.float32).double() for x in leaves]
    expected = results(scored(reference, 64), leaves, **DOUBLE)
    actual = results(scored(function, 64), leaves, dtype, device)
    assert all(torch.isfinite(x).all() for x in actual)
    decay = len(expected) - 3
    terms = max((x * expected[decay - 2 + i]).abs().max() for i, x in enumerate(leaves) if i != 2).item()
    assert (actual[decay].to("cpu", torch.float64) - expected[decay]).abs().max() <= 0.1 * tolerance * terms
    del actual[decay], expected[decay]
    assert_near(actual, expected, tolerance)


@EVERYWHERE
def test_a_slow_channel_after_a_fast_token_is_exact(place):
    """The decays between two tokens are no difference of sums that a fast token before them makes large."""
    function, dtype, device, tolerance = place
    leaves = draw(60, 4, True, 1e-3, batch=1, heads=1)
    leaves[2][:, :20] = -1e5
    leaves[2][:, 33] = -1e5
    expected = results(scored(reference, 64), leaves, **DOUBLE)
    assert_near(results(scored(function, 64), leaves, dtype, device), expected, tolerance)


@EVERYWHERE
def test_what_is_of_later_tokens_or_other_documents_is_zero(place):
    function, dtype, device, _ = place
    resets = starts(40)
    query, key, decay, probe, insert = (x.to(device, dtype) for x in draw(40, 4, True))
    found = function(query, key, decay, probe=probe, insert=insert, resets=resets.to(device), chunk=64)
    documents = torch.nn.functional.pad(resets, (0, 24)).cumsum(1)
    other = (documents[:, None, :, None] != documents[:, None, None, :]).expand(2, 2, 64, 64)[:, :, None].to(device)
    for name, strict in (("query_key", 0), ("query_insert", 0), ("probe_key", -1), ("probe_insert", -1)):
        scores = getattr(found, name)
        assert (scores[other] == 0).all() and torch.equal(scores, scores.tril(strict)), name


@EVERYWHERE
@REMOVING
def test_strides_and_no_rows(place, removing):
    """Arguments that lie apart, and gradients that come as views."""
    function, dtype, device, tolerance = place
    leaves = draw(20, 6, removing)

    def apart(call):
        def turned(*given, **more):
            given = [None if x is None else x.transpose(1, 3).contiguous().transpose(1, 3) for x in given]
            return tuple(x.transpose(-1, -2).sin().transpose(-1, -2) for x in call(*given, **more))

        return turned

    expected = results(apart(scored(reference, 16)), leaves, **DOUBLE)
    assert_near(results(apart(scored(function, 16)), leaves, dtype, device), expected, tolerance)
    empty = [None if x is None else x[:0].to(device, dtype).requires_grad_() for x in leaves]
    found = scored(function, 16)(*empty)
    assert found[0].shape == (0, 2, 2, 16, 16) and found[2].shape == (0, 2, 2, 6, 16)
    torch.autograd.grad(sum(x.sum() for x in found), [x for x in empty if x is not None])


@EVERYWHERE
@REMOVING
def test_second_derivative(place, removing):
    function, dtype, device, tolerance = place

    def of_a_penalty(function, dtype, device):
        leaves = [x if x is None else x.to(device, dtype).requires_grad_() for x in draw(9, 3, removing)]
        found = scored(function, 8)(*leaves, resets=starts(9).to(device))
        leaves = [x for x in leaves if x is not None]
        first = torch.autograd.grad(sum(y.pow(3).sum() for y in found), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    assert_near(of_a_penalty(function, dtype, device), of_a_penalty(reference, **DOUBLE), 20 * tolerance)


def test_gradients_by_differences():
    leaves = [x.requires_grad_() for x in draw(9, 2, True, batch=1, heads=1)]
    call = scored(by_torch, 8)
    assert torch.autograd.gradcheck(lambda *given: call(*given, resets=starts(9, 1)), leaves)


@EVERYWHERE
@REMOVING
def test_in_a_compiled_graph(place, removing):
    """Gradients through what a compiler makes of what stands around it, in one graph."""
    _, dtype, device, tolerance = place
    function = import_module(f"muse_kernels.{'triton' if dtype == torch.float32 else 'torch'}").decayed_scores
    leaves = [x if x is None else x.to(device, dtype).requires_grad_() for x in draw(20, 4, removing)]
    present = [x for x in leaves if x is not None]
    resets = starts(20).to(device)

    def around(query, *others):
        return tuple(x.sin() for x in scored(function, 16)(query.exp(), *others, resets=resets))

    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    found, due = (call(*leaves) for call in (compiled, around))
    totals = (sum(x.square().sum() for x in y) for y in (found, due))
    first, second = (torch.autograd.grad(total, present) for total in totals)
    assert_near([*found, *first], [*due, *second], tolerance)


def test_half_precision_is_computed_in_float32():
    given = [x.to(torch.bfloat16) for x in draw(20, 4, True)]
    expected = scored(reference, 16)(*given)
    assert_near(list(scored(partial(public, backend="torch"), 16)(*given)), list(expected), 1e-6)


@EVERYWHERE
@REMOVING
def test_autocast_leaves_it_in_its_precision(place, removing):
    """Its gradients too."""
    function, _, device, _ = place
    leaves = [x if x is None else x.to(device, torch.float32) for x in draw(20, 4, removing)]

    def derived(enabled):
        given = [x if x is None else x.clone().requires_grad_() for x in leaves]
        present = [x for x in given if x is not None]
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            found = scored(function, 16)(*given, resets=starts(20).to(device))
        first = torch.autograd.grad(sum(y.sin().sum() for y in found), present, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), present)
        return [*found, *first, *second]

    for one, other in zip(derived(True), derived(False), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_errors_name_the_argument():
    query, key, decay, probe, insert = draw(6, 4, True)
    with pytest.raises(ValueError, match=r"decayed_scores: query must be floating \(B, N, H, K\)"):
        public(query[0], key, decay)
    with pytest.raises(ValueError, match=r"decayed_scores: key must be floating \(2, 6, 2, 4\) on cpu"):
        public(query, key[..., :3], decay)
    with pytest.raises(ValueError, match="probe and insert are given together"):
        public(query, key, decay, probe=probe)
    with pytest.raises(ValueError, match=r"resets must be bool \(2, 6\) .*, got torch.int64"):
        public(query, key, decay, resets=torch.zeros(2, 6).long())
    with pytest.raises(ValueError, match=r"resets must be bool \(2, 6\) on cpu as query is, .* on meta"):
        public(query, key, decay, resets=torch.zeros(2, 6, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match="chunk must be a power of two up to 64, got 48"):
        public(query, key, decay, chunk=48)


@EVERYWHERE
def test_nothing_to_sum_is_an_error(place):
    """Without tokens or without channels."""
    function, dtype, device, _ = place
    for shape in ((2, 0, 1, 4), (2, 3, 1, 0)):
        given = torch.zeros(shape, dtype=dtype, device=device)
        with pytest.raises(ValueError, match=r"query must be floating \(B, N, H, K\) with N >= 1 and K >= 1"):
            function(given, given, given)


@EVERYWHERE
def test_values_are_checked_in_debug_mode_only(place):
    function, dtype, device, _ = place
    query, key, decay, probe, insert = (x.to(device, dtype) for x in draw(6, 4, True))
    rising = decay.clone()
    rising[1, 2, 0, 3] = 0.5
    function(query, key, rising)
    with debug():
        function(query, key, decay, probe=probe, insert=insert)
        with pytest.raises(ValueError, match="decayed_scores: log_decay must be <= 0, its largest is 0.5"):
            function(query, key, rising)
        with pytest.raises(ValueError, match="decayed_scores: insert holds values that are not finite"):
            function(query, key, decay, probe=probe, insert=insert / 0.0)


def test_what_triton_refuses():
    request = KernelRequest("decayed_scores", "cuda", "bfloat16", {"key": 130})
    with pytest.raises(ValueError, match="key up to 128 wide, not 130"):
        select_backend(request, "triton")
    with pytest.raises(ValueError, match="float32"):
        select_backend(request._replace(dtype="float64", sizes={"key": 64}), "triton")
    assert select_backend(request).backend == "torch"
