"""Scores under a decay per channel on a GPU against the torch backend in float64 on the same rounded inputs."""

import pytest
import torch

from muse_kernels import decayed_scores
from muse_kernels.torch import decayed_scores as by_torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NAMES = ("query", "key", "log_decay", "probe", "insert")
DTYPES = pytest.mark.parametrize(
    "dtype, tolerance", [(torch.bfloat16, 1e-2), (torch.float32, 3e-6)], ids=("bf16", "fp32")
)


def problem(tokens, heads, width, dtype, removing=True, resets=True, fastest=1.0, batch=3):
    """Leaves, of which the queries and keys lie within wider rows and the decays are float32, and resets."""
    random = torch.Generator().manual_seed(tokens + width)

    def normal(scale=1.0):
        wide = scale * torch.randn(batch, tokens, heads, width + 8, generator=random)
        return wide.to("cuda", dtype)[..., :width]

    decay = -fastest * torch.rand(batch, tokens, heads, width, generator=random).square().cuda()
    taken = (normal(width**-0.5), normal(width**-0.5)) if removing else (None, None)
    starts = (torch.rand(batch, tokens, generator=random) < 0.03).cuda() if resets else None
    return [normal(), normal(), decay, *taken], starts


def results(function, leaves, starts, chunk=64, dtype=None):
    leaves = [x if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in leaves]
    found = function(*leaves[:3], probe=leaves[3], insert=leaves[4], resets=starts, chunk=chunk)
    outputs = [x for x in found if x is not None]
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=random).to(y.device, y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x for x in leaves if x is not None], weights)]


def assert_near(actual, expected, tolerance):
    for place, (got, want) in enumerate(zip(actual, expected, strict=True)):
        assert got.shape == want.shape and torch.isfinite(got).all(), f"result {place}"
        error = ((got - want).norm() / want.norm().clamp(min=1e-30)).item()
        assert error <= tolerance, f"result {place}: {error:.1e}"


@DTYPES
@pytest.mark.parametrize("removing", (True, False), ids=("removing", "writing alone"))
@pytest.mark.parametrize("resets", (True, False), ids=("documents", "one document"))
@pytest.mark.parametrize(
    "tokens, heads, width, chunk",
    [(1024, 4, 96, 64), (333, 3, 48, 64), (200, 2, 72, 64), (130, 2, 128, 64), (130, 2, 64, 64), (65, 2, 20, 64)]
    + [(100, 2, 96, 32), (50, 2, 40, 16), (7, 2, 96, 8), (3, 2, 16, 2), (1, 2, 64, 1)],
)
def test_near_float64(dtype, tolerance, tokens, heads, width, chunk, resets, removing):
    leaves, starts = problem(tokens, heads, width, dtype, removing, resets)
    expected = results(by_torch, leaves, starts, chunk, torch.float64)
    assert_near(results(decayed_scores, leaves, starts, chunk), expected, tolerance)


@pytest.mark.parametrize("fastest", (20.0, 1e4))
def test_channels_that_forget_quickly_do_not_overflow(fastest):
    leaves, starts = problem(200, 2, 96, torch.float32, fastest=fastest)
    expected = results(by_torch, leaves, starts, dtype=torch.float64)
    assert_near(results(decayed_scores, leaves, starts), expected, 1e-5)


def test_a_slow_channel_after_a_fast_token_is_exact():
    leaves, _ = problem(64, 2, 48, torch.float32, resets=False, fastest=1e-3)
    leaves[2][:, :20] = -1e5
    leaves[2][:, 41] = -1e5
    expected = results(by_torch, leaves, None, dtype=torch.float64)
    assert_near(results(decayed_scores, leaves, None), expected, 3e-6)


@DTYPES
def test_compiled_gradients_are_the_same(dtype, tolerance):
    """Between operations that a compiler fuses, without a break in the graph."""
    leaves, starts = problem(333, 4, 96, dtype)

    def between(query, key, decay, probe, insert, **more):
        found = decayed_scores(query * 1.5, key.sin(), 2 * decay, probe=probe, insert=insert, **more)
        return tuple(x.sin() for x in found)

    def wrapped(function):
        return lambda *given, probe, insert, **more: function(*given, probe, insert, **more)

    expected = results(wrapped(between), leaves, starts)
    assert_near(results(wrapped(torch.compile(between, fullgraph=True)), leaves, starts), expected, tolerance)


@DTYPES
def test_the_same_bits_twice_and_in_a_recorded_graph(dtype, tolerance):
    """Nothing waits for the device, and no launch depends on what the tensors hold."""
    leaves, starts = problem(1024, 4, 96, dtype)
    expected = results(decayed_scores, leaves, starts)
    assert all(torch.equal(one, other) for one, other in zip(results(decayed_scores, leaves, starts), expected))
    held = [x.detach().clone().requires_grad_() for x in leaves]
    weights = [
        torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, y.dtype) for y in expected[:9]
    ]

    def step():
        outputs = decayed_scores(*held[:3], probe=held[3], insert=held[4], resets=starts)
        return [*outputs, *torch.autograd.grad(list(outputs), held, weights)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        for x, y in zip(held, leaves):
            x.copy_(y.flip(1))
    graph.replay()
    flipped = [x.flip(1) for x in leaves]
    due = [x.detach().requires_grad_() for x in flipped]
    outputs = decayed_scores(*due[:3], probe=due[3], insert=due[4], resets=starts)
    due = [*outputs, *torch.autograd.grad(list(outputs), due, weights)]
    assert all(torch.equal(one, other) for one, other in zip(recorded, due, strict=True))


def test_one_launch_forward_and_one_backward():
    """By the profiler: the kernels of this operation, whatever the tokens."""
    leaves, starts = problem(1024, 4, 96, torch.float32)
    results(decayed_scores, leaves, starts)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        results(decayed_scores, leaves, starts)
        torch.cuda.synchronize()
    counts = {e.key: e.count for e in profile.key_averages() if e.key.startswith("scores_")}
    assert counts == {"scores_kernel": 1, "scores_backward_kernel": 1}


def test_no_more_memory_than_results_and_gradients():
    """Forward and backward allocate what they return."""
    leaves, _ = problem(1024, 4, 96, torch.float32, resets=False)
    leaves = [x.detach().contiguous().requires_grad_() for x in leaves]
    results(decayed_scores, leaves, None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = decayed_scores(*leaves[:3], probe=leaves[3], insert=leaves[4])
    own = sum(x.numel() * x.element_size() for x in found)
    assert torch.cuda.max_memory_allocated() - before <= own + 2**20
    weights = [torch.ones_like(x) for x in found]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = torch.autograd.grad(list(found), leaves, weights)
    own = sum(x.numel() * x.element_size() for x in gradients)
    assert torch.cuda.max_memory_allocated() - before <= own + 2**20


@pytest.mark.parametrize("rows", (3, 40_000))
def test_any_number_of_rows(rows):
    leaves, starts = problem(5, 2, 16, torch.float32, batch=rows)
    expected = results(by_torch, leaves, starts, 8, torch.float64)
    assert_near(results(decayed_scores, leaves, starts, 8), expected, 3e-6)


def test_second_derivatives():
    leaves, starts = problem(20, 2, 16, torch.float32, batch=1)

    def penalty(function, dtype):
        given = [x.detach().to(dtype).requires_grad_() for x in leaves]
        found = function(*given[:3], probe=given[3], insert=given[4], resets=starts, chunk=16)
        first = torch.autograd.grad(sum(y.pow(3).sum() for y in found), given, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), given)

    assert_near(penalty(decayed_scores, torch.float32), penalty(by_torch, torch.float64), 1e-4)
