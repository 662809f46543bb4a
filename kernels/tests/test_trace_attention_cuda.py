"""The trace-attention kernels on a GPU against the torch backend in float64 on the same rounded inputs."""

import pytest
import torch

from muse_kernels import trace_attention
from muse_kernels.torch import trace_attention as by_torch
from muse_kernels.trace_arguments import Carried

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCES = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 5e-6}
NAMES = ("output", "scale", "squares", "query", "key", "value", "bound", "carried key", "carried value", "carried Q")


def draw(tokens, width, value_width, dtype, *, batch=2, heads=4, groups=2, carried=0, size=1.0, share=0.4):
    random = torch.Generator().manual_seed(0)

    def normal(*shape):
        return (size * torch.randn(*shape, generator=random)).to(dtype).cuda()

    bound = (share * (0.5 + torch.rand(batch, tokens, heads, generator=random))).cumsum(1).sqrt().cuda()
    leaves = [normal(batch, tokens, heads, width), normal(batch, tokens, groups, width)]
    leaves += [normal(batch, tokens, groups, value_width), bound]
    if carried:
        leaves += [normal(batch, carried, groups, width), normal(batch, carried, groups, value_width)]
        leaves += [1 + torch.rand(batch, heads, generator=random).cuda()]
    return leaves


def results(function, leaves, *, visible=None, precision=None, **options):
    """Outputs and gradients under cotangents that float16 and bfloat16 hold exactly."""
    leaves = [x.detach().to(precision or x.dtype).requires_grad_() for x in leaves]
    initial = Carried(leaves[4], leaves[5], visible, leaves[6]) if len(leaves) > 4 else None
    traced, _ = function(*leaves[:4], initial=initial, **options)
    random = torch.Generator().manual_seed(1)
    weights = [torch.randint(-3, 4, x.shape, generator=random).cuda() / 4 for x in traced]
    weights[2] = weights[2] / traced.squares.shape[1]  # every row's square reaches all later sums
    gradients = torch.autograd.grad(traced, leaves, [w.to(x.dtype) for w, x in zip(weights, traced, strict=True)])
    return [*traced, *gradients]


def assert_near(leaves, tolerance, **options):
    """||result - exact|| <= tolerance ||exact||, for every output and every gradient."""
    exact = results(by_torch, leaves, precision=torch.float64, **options)
    for name, got, want in zip(NAMES, results(trace_attention, leaves, **options), exact):
        error = ((got - want).norm() / want.norm()).item()
        print(f"{name}: {error:.1e}")
        assert error <= tolerance, f"{name}: {error:.1e}"


def starts(tokens):
    return (torch.rand(2, tokens, generator=torch.Generator().manual_seed(2)) < 4 / tokens).cuda()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "tokens, width, value_width, window, resets, carried",
    [
        (1024, 64, 64, None, False, 0),
        (1024, 128, 128, None, False, 0),
        (777, 128, 64, None, True, 130),
        (1000, 64, 64, 200, True, 199),
        (513, 80, 48, 64, False, 0),
        (1, 128, 128, None, False, 333),
    ],
)
def test_near_float64(dtype, tokens, width, value_width, window, resets, carried):
    leaves = draw(tokens, width, value_width, dtype, carried=carried)
    visible = None
    if carried:
        visible = torch.arange(carried, device="cuda") >= torch.tensor([[0], [carried // 2]], device="cuda")
    options = {"window": window, "visible": visible, "resets": starts(tokens) if resets else None}
    assert_near(leaves, TOLERANCES[dtype], **options)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_logits_of_ten_thousand(dtype):
    """No overflow or underflow: near the exact result where a row has one largest logit or ties."""
    leaves = draw(300, 64, 64, dtype)
    leaves[0], leaves[1] = 12.5 * leaves[0].sign(), 12.5 * leaves[1].sign()
    leaves[1][:, 50] = leaves[0][:, 200, ::2]
    leaves[1][:, 51] = -leaves[1][:, 50]
    logits = leaves[0][:, :, 0].double() @ leaves[1][:, :, 0].double().mT
    assert logits.max() == 1e4 and logits.min() == -1e4
    got = results(trace_attention, leaves, logit_scale=1.0)
    assert all(x.isfinite().all() for x in got)
    exact = results(by_torch, leaves, precision=torch.float64, logit_scale=1.0)
    for name, a, b in list(zip(NAMES, got, exact))[:3]:
        error = ((a - b).norm() / b.norm()).item()
        assert error <= TOLERANCES[dtype], f"{name}: {error:.1e}"


def test_two_runs_agree_bitwise():
    leaves = draw(1500, 64, 64, torch.bfloat16)
    for first, second in zip(results(trace_attention, leaves), results(trace_attention, leaves)):
        assert torch.equal(first, second)


def test_unwritten_memory_would_show(monkeypatch):
    empty, plain = torch.Tensor.new_empty, torch.empty
    leaves = draw(333, 128, 80, torch.bfloat16, carried=50)
    options = {"visible": torch.ones(2, 50, dtype=torch.bool, device="cuda"), "resets": starts(333)}
    exact = results(by_torch, leaves, precision=torch.float64, **options)
    poisoned = lambda x: x.fill_(torch.nan) if x.is_floating_point() else x  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *size, **named: poisoned(empty(x, *size, **named)))
    monkeypatch.setattr(torch, "empty", lambda *size, **named: poisoned(plain(*size, **named)))
    got = results(trace_attention, leaves, **options)
    monkeypatch.undo()
    for name, a, b in zip(NAMES, got, exact):
        assert ((a - b).norm() / b.norm()).item() <= TOLERANCES[torch.bfloat16], name


def test_strided():
    leaves = draw(200, 64, 64, torch.bfloat16)
    expected = results(trace_attention, leaves)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in leaves]
    for first, second in zip(results(trace_attention, apart), expected):
        assert torch.equal(first, second)


def test_compiled():
    leaves = [x.requires_grad_() for x in draw(256, 64, 64, torch.bfloat16)]
    function = lambda *x: trace_attention(*x)[0].output.float().sin()  # noqa: E731
    expected, actual = function(*leaves), torch.compile(function, fullgraph=True)(*leaves)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(x.sum(), leaves) for x in (expected, actual)]
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second, rtol=2e-2, atol=2e-2)
