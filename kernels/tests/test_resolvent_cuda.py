"""The resolvent kernels on a GPU, in the physical choice, against float64 on the same rounded inputs.

Single precision is held to ten times the error of the sequential loop in single precision, plus 1e-6 of the maximum.
"""

import pytest
import torch

from muse_kernels import dispatch, select_backend
from muse_kernels import torch as lanes
from muse_kernels.testing.resolvent import DOUBLE, assert_close, draw, results

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

kernels = pytest.importorskip("muse_kernels.triton")
tiles = pytest.importorskip("muse_kernels.triton.resolvent.tiles")

COLUMNS = tiles.ColumnTile(8, 4, 4, 2000, 1, late=4)  # unrolled four times: sixteen take ten times as long to compile


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that an operation allocates and does not write reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(problem):
    return type(problem)(*(x.detach().cuda().requires_grad_() for x in problem.leaves))


@pytest.mark.parametrize("kind", ("complex", "real", "constant", "strided"))
@pytest.mark.parametrize("sites", (1, 2, 63, 1000, 4097))
def test_every_result_is_near_float64(kind, sites):
    """General couplings, where the inverse is worse conditioned than in the physical choice."""
    problem = on_gpu(draw(sites, kind, dtype=torch.float32))
    exact = problem.in_double()
    for run, options in (
        (lambda p, b, **_: p.full(b.resolvent_diagonal), {}),
        (lambda p, b, **_: p.left(b.causal_resolvent_diagonal), {}),
        (lambda p, b, **o: p.apply(b.causal_resolvent_apply, **o), {"columns": COLUMNS}),
        (lambda p, b, **o: p.apply(b.causal_resolvent_apply, **o), {"lanes": tiles.LaneTile(32, 4, 3, 1)}),
    ):
        expected = results(exact, lambda p, run=run: run(p, lanes))
        actual = results(problem, lambda p, run=run, o=options: run(p, kernels, **o))
        assert_close(actual, expected, 3e-4, zeros=sites == 1)


@pytest.mark.parametrize("tile", ((32, 8, 1), (64, 8, 4), (128, 8, 2), (256, 4, 8)))
def test_any_number_of_warps_and_chunks(tile):
    problem = on_gpu(draw(1000, dtype=torch.float32))
    exact = problem.in_double()
    columns = tiles.ColumnTile(8, 4, 4, 300, tile[2], late=4)
    lanes_of_values = tiles.LaneTile(tile[0], tile[1], 2, tile[2])
    tile = tiles.Tile(*tile)
    expected = results(exact, lambda p: p.full(lanes.resolvent_diagonal))
    assert_close(results(problem, lambda p: p.full(kernels.resolvent_diagonal, tile=tile)), expected, 1e-4)
    expected = results(exact, lambda p: p.apply(lanes.causal_resolvent_apply))
    run = lambda p: p.apply(kernels.causal_resolvent_apply, tile=tile, columns=columns)  # noqa: E731
    assert_close(results(problem, run), expected, 1e-4)
    run = lambda p: p.apply(kernels.causal_resolvent_apply, lanes=lanes_of_values)  # noqa: E731
    assert_close(results(problem, run), expected, 1e-4)


@pytest.mark.parametrize("kind, batch, sites", (("constant", 150, 2500), ("constant", 8, 9000), ("complex", 8, 9000)))
def test_rows_read_once(kind, batch, sites):
    """Many rows, a program each; fewer, longer ones, whose chunks wait for each other. Repeated: a race would show."""
    problem = on_gpu(draw(sites, kind, batch=batch, heads=4, dtype=torch.float32))
    weight = torch.randn(problem.diagonal.shape, device="cuda", dtype=torch.complex64)

    def theta_and_gradient(p, backend):
        theta, _ = p.left(backend.causal_resolvent_diagonal)
        return theta, *torch.autograd.grad((weight * theta).sum().real, p.diagonal)

    expected = theta_and_gradient(problem.in_double(), lanes)
    for _ in range(20):
        for found, exact in zip(theta_and_gradient(problem, kernels), expected, strict=True):
            error = ((found - exact).abs().amax(-1) / exact.abs().amax(-1)).max()
            assert error <= 1e-3, f"{error:.1e}"


@pytest.mark.parametrize("batch, sites, width", ((1, 512, 6), (512, 64, 16), (1, 5000, 3)))
def test_values_by_the_kernel_of_their_own(batch, sites, width):
    """Several warps a row, a thread a column, chunks of few, long rows: as a call without options takes them."""
    problem = on_gpu(draw(sites, "constant", batch=batch, heads=4, width=width, dtype=torch.float32))
    with torch.no_grad():
        problem.lower.mul_(0.3)  # the values would grow past single precision
    expected = results(problem.in_double(), lambda p: p.apply(lanes.causal_resolvent_apply))
    assert_close(results(problem, lambda p: p.apply(kernels.causal_resolvent_apply)), expected, 1e-4)


@pytest.mark.parametrize("width, inside, lane_tile", (
    (1, False, None), (6, False, None), (6, True, tiles.LaneTile(32, 4, 6, 1, 128)), (16, True, None),
))  # fmt: skip
def test_values_of_many_rows(width, inside, lane_tile):
    """Real values, a diagonal whose sites are not neighbours; rows one by one, or heads inside tokens as in models."""
    problem = on_gpu(draw(300, "constant", batch=128, width=width, dtype=torch.float32))
    with torch.no_grad():
        problem.lower.mul_(0.3)
        problem.diagonal = problem.diagonal.transpose(1, 2).contiguous().transpose(1, 2)
        if inside:
            problem.values = problem.values.transpose(1, 2).contiguous().transpose(1, 2)
    for x in (problem.diagonal, problem.values):
        x.requires_grad_()
    expected = results(problem.in_double(), lambda p: p.apply(lanes.causal_resolvent_apply))
    run = lambda p: p.apply(kernels.causal_resolvent_apply, lanes=lane_tile)  # noqa: E731
    assert_close(results(problem, run), expected, 1e-4)


def sequential(a, l, u, z):
    d, p = (a - z).unbind(-1), (l * u).unbind(-1)
    theta, steps = torch.zeros_like(d[0]), []
    for i in range(len(d)):
        theta = 1 / (d[i] - p[i] * theta)
        steps.append(theta)
    return torch.stack(steps, -1)


@pytest.mark.parametrize("eta", (0.05, 0.1, 1.0))
def test_as_good_as_the_sequential_loop(eta):
    random = torch.Generator("cuda").manual_seed(0)
    normal = torch.randn(2, 64, 6000, generator=random, device="cuda", dtype=torch.complex64)
    a, l = torch.complex(normal[0].real, -normal[0].imag.abs()), torch.exp(0.3 * normal[1])
    z = torch.full((64, 1), 0.4 + 1j * eta, device="cuda")
    inputs = (a, l, l.conj(), z)
    exact = lanes.causal_resolvent_diagonal(*(x.to(DOUBLE[x.dtype]) for x in inputs))[0]
    largest = exact.abs().amax(-1, keepdim=True)
    allowed = 10 * ((sequential(*inputs) - exact).abs() / largest).max() + 1e-6
    theta = kernels.causal_resolvent_diagonal(*inputs)[0]
    assert ((theta - exact).abs() / largest).max() <= allowed
    green = kernels.resolvent_diagonal(*inputs)
    full = lanes.resolvent_diagonal(*(x.to(DOUBLE[x.dtype]) for x in inputs))
    assert ((green - full).abs() / full.abs().amax(-1, keepdim=True)).max() <= allowed
    assert (theta.imag > 0).all() and (green.abs() <= 1.001 / eta).all()


def test_auto_takes_the_kernels():
    request = dispatch.KernelRequest("causal_resolvent_apply", "cuda", "float32")
    assert select_backend(request).backend == "triton"
