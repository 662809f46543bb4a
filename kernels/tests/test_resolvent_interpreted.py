"""The resolvent kernels, small: rows of several chunks, odd lengths, every input's gradient, poisoned memory.

TRITON_INTERPRET=1 pytest kernels/tests
"""

import os

import pytest
import torch

from muse_kernels import KernelRequest, reference, select_backend
from muse_kernels.arguments import check_resolvent
from muse_kernels.testing.resolvent import assert_close, draw, results

apply_launches = pytest.importorskip("muse_kernels.triton.resolvent.apply_launches")
launches = pytest.importorskip("muse_kernels.triton.resolvent.green_launches")
row_launches = pytest.importorskip("muse_kernels.triton.resolvent.row_launches")
kernels = pytest.importorskip("muse_kernels.triton")
tiles = pytest.importorskip("muse_kernels.triton.resolvent.tiles")
rows_of = pytest.importorskip("muse_kernels.triton.resolvent.rows").rows_of

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="Triton reads TRITON_INTERPRET=1 when it is imported"
)

CLOSE = 4e-6
TILE = tiles.Tile(2, 4, 1)  # chunks of eight sites
COLUMNS = tiles.ColumnTile(2, 2, 2, 3, 1, late=2)  # two rows by two columns, chunks of three sites


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that an operation allocates and does not write reads as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def both(problem, run, **options):
    expected = results(problem.in_double(), lambda p: run(p, reference))
    assert_close(results(problem, lambda p: run(p, kernels, **options)), expected, CLOSE)


@pytest.mark.parametrize("kind, sites", (("complex", 11), ("real", 5), ("strided", 8)))
def test_two_sided_diagonal(kind, sites):
    problem = draw(sites, kind, batch=1, heads=2 if kind == "strided" else 1, dtype=torch.float32)
    both(problem, lambda p, b, **o: p.full(b.resolvent_diagonal, **o), tile=TILE)


@pytest.mark.parametrize("kind, sites", (("complex", 11), ("constant", 5)))
def test_applied_to_values(kind, sites):
    problem = draw(sites, kind, batch=1, heads=2 if kind == "constant" else 1, dtype=torch.float32)
    both(problem, lambda p, b, **o: p.apply(b.causal_resolvent_apply, **o), tile=TILE, columns=COLUMNS)


@pytest.mark.parametrize("kind, sites", (("complex", 19), ("constant", 8), ("constant", 11)))
def test_long_rows_read_once(kind, sites):
    problem = draw(sites, kind, batch=1, heads=2, dtype=torch.float32)
    checked = check_resolvent("", *(x.detach() for x in problem.leaves[:4]), initial=problem.theta.detach())
    rows = rows_of(checked)
    expected, _ = problem.in_double().left(reference.causal_resolvent_diagonal)
    by = [row_launches.left_green_chain] + [row_launches.left_green_loop] * (kind == "constant")
    for launch in by:
        theta = launch(rows, tiles.Tile(2, 4, 1)).view(expected.shape)
        assert (theta - expected).abs().max() <= CLOSE * expected.abs().max(), launch.__name__


@pytest.mark.parametrize("sites", (8, 19))
def test_long_rows_read_once_backward(sites):
    """In the middle of the band, where what a chunk hands on has hardly decayed."""
    random = torch.Generator().manual_seed(0)
    diagonal, gradient = (torch.randn(2, sites, dtype=torch.complex64, generator=random) for _ in range(2))
    ones = torch.ones(2, 1, dtype=torch.complex64)
    rows = rows_of(check_resolvent("", 0.1 * diagonal.real, ones, ones, torch.full((2, 1), 0.5 + 0.05j)))
    theta = row_launches.left_green_chain(rows, tiles.Tile(2, 4, 1))
    twice, once = (
        launches.left_green_backward(rows, theta, gradient, gradient, None, True, tiles.Tile(2, 4, 1), chain)
        for chain in (False, True)
    )
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=CLOSE * b.abs().max().item())


@pytest.mark.parametrize("rows, sites, constant, taken", (
    (512, 4096, True, "loop"), (512, 4096, False, "forward"), (511, 4096, True, "forward"),
    (512, 2048, True, "forward"), (32, 4097, True, "chain"), (31, 4097, True, "forward"),
))  # fmt: skip
def test_choice_of_the_kernel(monkeypatch, rows, sites, constant, taken):
    called = []
    for name in ("loop", "chain", "forward"):
        fake = lambda *_, name=name, **__: called.append(name) or (None, None)  # noqa: E731
        monkeypatch.setattr(row_launches, f"left_green_{name}", fake)
    a, z = torch.empty(1, rows, sites, device="meta"), torch.empty(rows, dtype=torch.complex64, device="meta")
    row_launches.left_green(row_launches.Rows(a, z if constant else a, z if constant else a, z, z))
    assert called == [taken]


@pytest.mark.parametrize("kind, sites, width, columns", (
    ("complex", 11, 5, 5), ("constant", 8, 3, 3), ("strided", 16, 4, 2), ("constant", 9, 5, 2), ("complex", 5, 1, 1),
    ("constant", 16, 7, 7),
))  # fmt: skip
def test_applied_in_one_pass(kind, sites, width, columns):
    problem = draw(sites, kind, batch=1, heads=2, width=width, dtype=torch.float32)
    lanes = tiles.LaneTile(2, 4, columns, 1)
    both(problem, lambda p, b, **o: p.apply(b.causal_resolvent_apply, **o), lanes=lanes)


@pytest.mark.parametrize("varies, real", ((False, False), (True, True)))
def test_values_backward_by_either_kernel(varies, real):
    """Two sites a lane, as many rows take them, against one thread a column; l is real where it varies."""
    random = torch.Generator().manual_seed(0)
    gradient, y, theta, initial, lower = (
        torch.randn(*shape, dtype=torch.complex64, generator=random)
        for shape in ((1, 2, 7, 5), (1, 2, 7, 5), (2, 7), (2, 5), (1, 2, 7) if varies else (2,))
    )
    lower = lower.real if varies else lower
    given = (gradient, y, lower, theta, initial, torch.float32 if real else torch.complex64, True)
    expected = apply_launches.apply_backward(*given, columns=COLUMNS)
    for columns in (5, 2):
        found = apply_launches.apply_backward(*given, lanes=tiles.LaneTile(2, 2, columns, 1))
        assert_close(found, expected, CLOSE)


def test_strides_of_values_applied_in_one_pass():
    problem = draw(8, "constant", batch=2, heads=2, width=4, dtype=torch.float32)
    call = lambda: problem.apply(kernels.causal_resolvent_apply, lanes=tiles.LaneTile(2, 4, 4, 1))[0][0]  # noqa: E731
    plain = call()
    for order in ((0, 2, 1, 3), (3, 1, 2, 0)):
        values = problem.values.detach().permute(order).contiguous()
        problem.values = values.permute(order)  # each of the two is its own inverse
        assert torch.equal(call(), plain)


@pytest.mark.parametrize("rows, sites, width, taken", (
    (2048, 1024, 6, (32, 6)), (2048, 1024, 8, (32, 4)), (2048, 1024, 16, None), (512, 1024, 6, (128, 6)),
    (64, 4096, 6, (256, 6)), (64, 4097, 6, None), (1, 1, 1, (32, 1)), (8, 200, 9, (64, 4)),
))  # fmt: skip
def test_choice_of_lanes_for_values(rows, sites, width, taken):
    tile = tiles.lane_tile(rows, sites, width)
    assert (tile and (tile.lanes, tile.columns)) == taken


@pytest.mark.parametrize("rows, sites, width, lanes, span", (
    (2048, 2048, 8, True, 2048), (256, 16_384, 8, False, 256), (64, 65_536, 8, False, 256),
    (2048, 1024, 6, False, 1024), (8, 200, 8, False, 100),
))  # fmt: skip
def test_choices_for_heads_inside_tokens(rows, sites, width, lanes, span):
    assert (tiles.lane_tile(rows, sites, width, inside_tokens=True) is not None) == lanes
    assert tiles.column_tile(rows, sites, width).span == span


@pytest.mark.parametrize("width", (2, 3))
def test_whole_stretches_of_values(width):
    """Eight sites in chunks of four: no load of the values is masked."""
    problem = draw(8, "constant", batch=1, heads=2, width=width, dtype=torch.float32)
    columns = tiles.ColumnTile(2, 2, 2, 4, 1, late=2)
    both(problem, lambda p, b, **o: p.apply(b.causal_resolvent_apply, **o), columns=columns)


def test_values_of_all_heads_together():
    """Heads inside tokens, as layers have them: the same numbers in the same order of memory, and so their gradient."""
    problem = draw(7, "constant", batch=2, heads=3, width=3, dtype=torch.float32)

    def together(p, backend, **options):
        values = p.values.transpose(1, 2).contiguous().transpose(1, 2)
        (y, theta), final = backend.causal_resolvent_apply(
            p.diagonal, p.lower, p.upper, p.energy, values, initial=(p.theta, p.applied), **options
        )
        if backend is kernels:
            assert y.transpose(1, 2).is_contiguous()
        return y, theta, *final

    both(problem, together, tile=TILE, columns=COLUMNS)
    both(problem, together, lanes=tiles.LaneTile(2, 4, 2, 1))
    both(problem, together)  # forward one thread a column, backward lanes


@pytest.mark.parametrize("lanes", (tiles.LaneTile(2, 4, 2, 1), None))
def test_values_in_half_precision(lanes):
    """Only what is loaded is rounded: the result is that of the rounded values, their gradient is rounded."""
    problem = draw(9, "constant", batch=1, heads=2, width=2, dtype=torch.float32)
    rounded = problem.values.detach().real.bfloat16().requires_grad_()
    whole = rounded.detach().float().requires_grad_()
    results = []
    for values in (rounded, whole):
        (y, _), _ = kernels.causal_resolvent_apply(
            problem.diagonal, problem.lower, problem.upper, problem.energy, values, lanes=lanes
        )
        results.append((y, *torch.autograd.grad(y.abs().square().sum(), values)))
    assert results[0][1].dtype == torch.bfloat16
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    # The interpreter cuts off what a GPU rounds.
    torch.testing.assert_close(results[0][1].float(), results[1][1], rtol=2**-7, atol=0)


def test_left_diagonal_and_its_double_backward():
    problem = draw(6, batch=1, heads=1, dtype=torch.float32)

    def second(p, backend, **options):
        theta, _ = p.left(backend.causal_resolvent_diagonal, **options)
        (g,) = torch.autograd.grad(theta.abs().square().sum(), p.diagonal, create_graph=True)
        return theta, g.abs().square().sum()

    both(problem, second, tile=TILE)


def test_double_backward_of_the_others():
    problem = draw(5, batch=1, heads=1, width=1, dtype=torch.float32)

    def second(p, backend):
        (y, _), _ = p.apply(backend.causal_resolvent_apply)
        outputs = y.abs().square().sum() + p.full(backend.resolvent_diagonal).abs().square().sum()
        gradients = torch.autograd.grad(outputs, (p.diagonal, p.lower), create_graph=True)
        return sum(g.abs().square().sum() for g in gradients)

    both(problem, second)


def test_compiled_without_a_graph_break():
    problem = draw(5, batch=1, heads=1, width=1, dtype=torch.float32)
    call = lambda p: p.apply(kernels.causal_resolvent_apply, tile=TILE, columns=COLUMNS)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_close(results(problem, compiled), results(problem, call), 1e-6)


def test_empty_batch():
    (y, theta), _ = kernels.causal_resolvent_apply(torch.ones(0, 4), 1.0, 1.0, 0.5j, torch.ones(0, 4, 2))
    assert y.shape == (0, 4, 2) and theta.shape == (0, 4)


@pytest.mark.parametrize("width, options", (
    (70, {"columns": tiles.ColumnTile(1, 32, 2, 3, 1, late=2)}), (24, {"lanes": tiles.LaneTile(2, 2, 8, 1)}),
))  # fmt: skip
def test_values_wider_than_a_program_holds(width, options):
    """Tiles of 32 columns, the last not full, by the kernel with one thread a column; of 8, all full, over lanes."""
    assert select_backend(KernelRequest("causal_resolvent_apply", "cpu", "float32", {"value": 200})).backend == "triton"
    problem = draw(3, batch=1, heads=1, width=width, dtype=torch.float32)
    both(problem, lambda p, b, **o: p.apply(b.causal_resolvent_apply, **o), **options)


def test_no_values():
    problem = draw(5, batch=1, heads=1, width=0, dtype=torch.float32)
    (y, theta), _ = problem.apply(kernels.causal_resolvent_apply)
    expected, _ = problem.in_double().left(reference.causal_resolvent_diagonal)
    assert y.shape == (1, 1, 5, 0) and (theta - expected).abs().max() <= CLOSE * expected.abs().max()
