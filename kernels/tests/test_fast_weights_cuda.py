"""The fast-weights kernels on a GPU against the torch backend in float64 on the same rounded inputs."""

import pytest
import torch

from muse_kernels import fast_weights
from muse_kernels.testing.fast_weights import NAMES, draw
from muse_kernels.torch import fast_weights as chunkwise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

RULES = ("hebbian", "delta")


def results(problem, backend, **options):
    """Output, final and gradients under cotangents that bfloat16 holds exactly."""
    outputs = problem.run(backend, **options)
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=random).bfloat16().cuda() for x in outputs]
    gradients = torch.autograd.grad(outputs, problem.leaves, [w.to(x.dtype) for w, x in zip(weights, outputs)])
    return [*outputs, *gradients]


def assert_near(problem, tolerance, **options):
    """||result - exact|| <= tolerance ||exact||, for the output, the final state and every gradient."""
    exact = results(problem.to(torch.float64), chunkwise, **options)
    for name, got, want in zip(NAMES, results(problem, fast_weights, **options), exact, strict=True):
        error = ((got - want).norm() / want.norm()).item()
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1.5e-2), (torch.float32, 2e-6)])
@pytest.mark.parametrize(
    "tokens, key_width, value_width, resets, read",
    [
        (1024, 128, 128, False, "after"),
        (1024, 128, 256, False, "after"),
        (333, 96, 192, True, "after"),
        (333, 128, 512, True, "before"),
        (1024, 64, 64, False, "after"),
        (333, 64, 64, True, "before"),
        (333, 64, 80, True, "before"),
        (1, 16, 16, False, "after"),
        (8192, 64, 48, True, "after"),  # in pieces
        (256, 36, 72, True, "after"),  # masked tiles of such widths were wrong in bfloat16
        (200, 40, 36, False, "before"),
        (130, 20, 12, True, "after"),
        (192, 80, 112, False, "after"),
        (192, 96, 24, True, "after"),
    ],
)
def test_near_float64(rule, dtype, tolerance, tokens, key_width, value_width, resets, read):
    sizes = {"heads": 3, "key_width": key_width, "value_width": value_width, "resets": resets}
    assert_near(draw(tokens, **sizes).to(dtype, "cuda"), tolerance, rule=rule, read=read)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "key_width, value_width", [(8, 8), (24, 40), (36, 72), (40, 72), (48, 96), (72, 56), (112, 80)]
)
def test_no_gradient_from_earlier_outputs_to_later_tokens(rule, dtype, key_width, value_width):
    problem = draw(256, batch=4, heads=4, key_width=key_width, value_width=value_width).to(dtype, "cuda")
    output, _ = problem.run(fast_weights, rule=rule)
    cotangent = torch.ones_like(output)
    cotangent[:, 128:] = 0
    for name, leaf, gradient in zip(
        NAMES[2:], problem.leaves[:5], torch.autograd.grad(output, problem.leaves[:5], cotangent), strict=False
    ):
        assert not gradient[:, 128:].any(), name
        assert gradient[:, :128].any(), name
        assert leaf.shape[1] == 256


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("warps", (2, 8))
def test_at_other_numbers_of_warps(rule, warps, monkeypatch):
    from muse_kernels.triton.fast_weights import launch

    tuning = launch.tuning_of(torch.bfloat16, rule, 64, 64, 0)
    kernels = {name: getattr(tuning, name)._replace(warps=warps) for name in tuning._fields if name != "leaf"}
    monkeypatch.setattr(launch, "tuning_of", lambda *_: tuning._replace(**kernels))
    problem = draw(200, heads=1, key_width=64, value_width=64, resets=True)
    assert_near(problem.to(torch.bfloat16, "cuda"), 1.5e-2, rule=rule)


@pytest.mark.parametrize("rule", RULES)
def test_unwritten_memory_would_show(rule, monkeypatch):
    empty = torch.Tensor.new_empty
    problem = draw(333, heads=3, key_width=64, value_width=80, resets=True).to(torch.bfloat16, "cuda")
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda x, *size, **options: empty(x, *size, **options).fill_(torch.nan)
    )
    assert_near(problem, 1.5e-2, rule=rule, read="before")


@pytest.mark.parametrize("rule", RULES)
def test_strided_and_expanded(rule):
    problem = draw(333, heads=3, key_width=64, value_width=80, resets=True).to(torch.bfloat16, "cuda")
    plain, _ = problem.run(fast_weights, rule=rule)
    problem.query = problem.query.detach().permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    problem.value = problem.value.detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(problem.run(fast_weights, rule=rule)[0], plain)
    problem.key = problem.key[:, :, :1].detach().expand(-1, -1, 3, -1)
    shared, _ = problem.run(fast_weights, rule=rule)
    problem.key = problem.key.contiguous()
    assert torch.equal(problem.run(fast_weights, rule=rule)[0], shared)


@pytest.mark.parametrize("rule", RULES)
def test_more_rows_than_the_later_axes_of_a_grid_take(rule):
    sizes = {"batch": 35_000, "heads": 2, "key_width": 16, "value_width": 16}
    assert_near(draw(2, **sizes).to(torch.bfloat16, "cuda"), 1.5e-2, rule=rule)


def test_compiled():
    problem = draw(128, heads=2, key_width=64, value_width=64).to(torch.bfloat16, "cuda")
    compiled = torch.compile(lambda *x: fast_weights(*x, rule="delta")[0].float().sin(), fullgraph=True)
    expected = fast_weights(*problem.leaves[:5], rule="delta")[0].float().sin()
    torch.testing.assert_close(compiled(*problem.leaves[:5]), expected)


def test_keys_of_unlike_lengths_stay_within_half_precision():
    """Where a chunk's triangle is inverted by float16 operands, lengths from 1e-3 to 1e3 left nothing finite."""
    problem = draw(128, heads=2, key_width=64, value_width=64)
    lengths = 10 ** (torch.rand(2, 128, 2, generator=torch.Generator().manual_seed(3)) * 6 - 3)
    with torch.no_grad():
        problem.key.mul_(lengths[..., None])
        problem.rate.div_(lengths**2)
    problem = problem.to(torch.bfloat16, "cuda")
    exact = problem.to(torch.float64).run(chunkwise, rule="delta")
    for got, want in zip(problem.run(fast_weights, rule="delta"), exact, strict=True):
        assert ((got - want).norm() / want.norm()).item() <= 5e-2
