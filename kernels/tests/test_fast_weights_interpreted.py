"""The fast-weights kernels, small, in float32: Triton's interpreter has no bfloat16 products.

TRITON_INTERPRET=1 pytest kernels/tests
"""

import os

import pytest
import torch

from muse_kernels import fast_weights as public
from muse_kernels.reference import fast_weights as reference
from muse_kernels.testing.fast_weights import assert_close, draw, results

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
prepare = pytest.importorskip("muse_kernels.triton.fast_weights.prepare")
fast_weights_launch = pytest.importorskip("muse_kernels.triton.fast_weights.launch")
fast_weights_pieces = pytest.importorskip("muse_kernels.triton.fast_weights.pieces")
fast_weights = pytest.importorskip("muse_kernels.triton").fast_weights

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="Triton reads TRITON_INTERPRET=1 when it is imported"
)

RULES = ("hebbian", "delta")
CLOSE = 3e-6


def sequential(problem, **options):
    return results(problem.to(torch.float64), reference, **options)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("read", ("after", "before"))
def test_equals_the_recursion_with_resets_and_odd_widths(rule, read):
    problem = draw(21, batch=1, key_width=20, value_width=9, resets=True, dtype=torch.float32)
    assert_close(results(problem, fast_weights, rule=rule, read=read), sequential(problem, rule=rule, read=read), CLOSE)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tokens", (1, 33))
def test_equals_the_recursion_at_any_length(rule, tokens):
    problem = draw(tokens, batch=2, heads=1, key_width=16, value_width=32, dtype=torch.float32)
    assert_close(results(problem, fast_weights, rule=rule), sequential(problem, rule=rule), CLOSE)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value_width", (136, 512))
def test_values_wider_than_any_tile(rule, value_width):
    problem = draw(18, batch=1, heads=1, key_width=16, value_width=value_width, resets=True, dtype=torch.float32)
    assert_close(results(problem, fast_weights, rule=rule), sequential(problem, rule=rule), CLOSE)


@pytest.mark.parametrize("rule, leaf", [("hebbian", 2), ("delta", 2), ("delta", 4)])
def test_split_key_tiles_and_long_chunks(rule, leaf, monkeypatch):
    """What bfloat16 runs with: chunks of 64, so that inverses are joined, and several tiles of keys and values."""
    tiles = fast_weights_launch.Launch(keys=16, values=16, warps=4, stages=1)
    whole = tiles._replace(keys=128)
    tuning = fast_weights_launch.Tuning(leaf, whole, whole, whole, states=tiles, ends=whole, gradients=tiles)
    problem = draw(70, batch=1, heads=1, key_width=32, value_width=32, resets=True, dtype=torch.float32)
    expected = sequential(problem, rule=rule)
    monkeypatch.setattr(fast_weights_launch, "SINGLE", tuning)
    monkeypatch.setattr(fast_weights_launch, "LONGEST_SINGLE", 64)
    assert_close(results(problem, fast_weights, rule=rule), expected, CLOSE)


def test_inverse_of_alike_keys(rule="delta"):
    """Equal keys at rate 2 without decay: the powers of the chunk's matrix exceed 1e5, its inverse stays at 2."""
    problem = draw(16, batch=1, heads=1, key_width=16, value_width=16, dtype=torch.float32)
    with torch.no_grad():
        problem.key.copy_(problem.key[:, :1].clone().expand_as(problem.key))
        problem.rate.fill_(2.0)
        problem.log_decay.fill_(0.0)
    assert_close(results(problem, fast_weights, rule=rule), sequential(problem, rule=rule), 1e-5)


@triton.jit
def invert_kernel(products, rate, inverse, C: tl.constexpr):
    rows = tl.arange(0, C)
    square = rows[:, None] * C + rows[None, :]
    found = tl.load(products + square)
    lower = tl.where(rows[:, None] > rows[None, :], found * tl.load(rate + rows)[None, :], 0.0)
    lengths = prepare.lengths_of_keys(found, rows)
    tl.store(inverse + square, prepare.invert_of_keys(lower, lengths, rows, C, 2, tl.float16, "ieee"))


def test_inverse_in_half_precision_of_keys_of_unlike_lengths():
    """As bfloat16 is computed: joins of float16 operands, in which a ratio of lengths of 1e6 has no number."""
    problem = unlike_keys(64)
    key, rate = problem.key[0, :, 0].detach(), problem.rate[0, :, 0].detach()
    products, inverse = key @ key.T, torch.empty(64, 64)
    invert_kernel[(1,)](products, rate, inverse, C=64)
    exact = torch.linalg.inv(torch.eye(64).double() + (products.double() * rate.double()).tril(-1))
    lengths = key.double().norm(dim=1)
    alike = lengths / lengths[:, None]  # entries of keys of one length are at most 2
    torch.testing.assert_close(inverse.double() * alike, exact * alike, rtol=0, atol=1e-2)


def unlike_keys(tokens):
    """A problem whose keys have lengths from 1e-3 to 1e3, at rates up to 2 / |k|^2."""
    problem = draw(tokens, batch=1, heads=1, key_width=16, value_width=16, dtype=torch.float32)
    lengths = 10 ** (torch.rand(1, tokens, 1, generator=torch.Generator().manual_seed(3)) * 6 - 3)
    with torch.no_grad():
        problem.key.mul_(lengths[..., None])
        problem.rate.div_(lengths**2)
    return problem


def test_keys_of_unlike_lengths():
    problem = unlike_keys(40)
    expected = problem.to(torch.float64).run(reference, rule="delta")
    for got, want in zip(problem.run(fast_weights, rule="delta"), expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("rule", RULES)
def test_unwritten_memory_would_show(rule, monkeypatch):
    """Every buffer starts as NaN: whatever a kernel fails to write reaches a result."""
    empty = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        return empty(self, *size, **options).fill_(torch.nan)

    problem = draw(19, batch=1, heads=1, key_width=12, value_width=20, dtype=torch.float32)
    expected = sequential(problem, rule=rule)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    assert_close(results(problem, fast_weights, rule=rule), expected, CLOSE)


@pytest.mark.parametrize("rule", RULES)
def test_strided_expanded_and_empty(rule):
    problem = draw(18, heads=2, key_width=16, value_width=16, dtype=torch.float32)
    expected = problem.to(torch.float64).run(reference, rule=rule)
    problem.query = problem.query.detach().permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    problem.value = problem.value.detach().transpose(1, 2).contiguous().transpose(1, 2)
    for got, want in zip(problem.run(fast_weights, rule=rule), expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)
    key = problem.key[:, :, :1].detach().expand(-1, -1, 2, -1)
    arguments = (problem.query, key, problem.value, problem.log_decay, problem.rate)
    torch.testing.assert_close(fast_weights(*arguments, rule=rule), reference(*arguments, rule=rule), rtol=0, atol=2e-5)
    assert all(x.shape[0] == 0 for x in results(draw(4, batch=0, dtype=torch.float32), fast_weights, rule=rule))


def test_registered_operator(rule="delta"):
    """Schema, fake tensors and autograd registration, as torch's own checker sees them."""
    p = draw(5, batch=1, heads=1, key_width=4, value_width=3, resets=True, dtype=torch.float32)
    arguments = (p.query, p.key, p.value, p.log_decay, p.rate, p.initial, p.resets, rule, "after", 16, 1)
    torch.library.opcheck(torch.ops.muse_kernels.fast_weights.default, arguments)


@pytest.mark.parametrize("dynamic", (False, True))
def test_compiled_graph_stays_whole(dynamic):
    problem = draw(17, batch=1, heads=1, key_width=8, value_width=8, dtype=torch.float32)
    compiled = torch.compile(fast_weights, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    assert_close(results(problem, compiled, rule="delta"), sequential(problem, rule="delta"), CLOSE)


@pytest.mark.parametrize("rule", RULES)
def test_second_derivative_by_torch(rule):
    problem = draw(9, batch=1, heads=1, key_width=4, value_width=3, dtype=torch.float32)

    def penalty(p, backend):
        output, final = p.run(backend, rule=rule)
        gradients = torch.autograd.grad((output**2).sum() + final.sum(), p.leaves, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in gradients), p.leaves)

    for got, want in zip(penalty(problem, fast_weights), penalty(problem.to(torch.float64), reference), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_auto_takes_the_kernels():
    problem = draw(5, batch=1, heads=1, dtype=torch.float32)
    output, _ = problem.run(public)
    torch.testing.assert_close(output, problem.run(fast_weights)[0], rtol=0, atol=0)


def test_refusals():
    with pytest.raises(ValueError, match="backend torch for float64"):
        draw(4).run(fast_weights)
    for key, value in ((129, 3), (3, 513)):
        with pytest.raises(ValueError, match=f"keys up to 128 and values up to 512 wide, got K={key}, M={value}"):
            draw(4, key_width=key, value_width=value, dtype=torch.float32).run(fast_weights)


@pytest.mark.parametrize("rule", RULES)
def test_more_rows_than_an_axis_takes(rule, monkeypatch):
    """Five rows over two layers of three, the last of which is taken twice."""
    monkeypatch.setattr(fast_weights_launch, "MOST_OF_AN_AXIS", 3)
    problem = draw(20, batch=1, heads=5, key_width=3, value_width=2, dtype=torch.float32)
    assert_close(results(problem, fast_weights, rule=rule), sequential(problem, rule=rule), 1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("resets", (False, True))
def test_rows_in_pieces(rule, resets, monkeypatch):
    """Few long rows, cut into pieces that run side by side: here four of two chunks."""
    pieces = fast_weights_pieces
    monkeypatch.setattr(pieces, "FEWEST_PIECES", 2)
    monkeypatch.setattr(pieces, "SHORTEST", 2)
    assert pieces.pieces_of(2, 128, 16) == 4 and pieces.pieces_of(2, 127, 16) == 1
    problem = draw(128, batch=2, heads=1, key_width=6, value_width=5, resets=resets, dtype=torch.float32)
    assert_close(results(problem, fast_weights, rule=rule), sequential(problem, rule=rule), 1e-5)


def test_pieces_are_for_few_long_rows():
    cut = fast_weights_pieces.pieces_of
    assert [cut(8, 65_536, 64), cut(32, 16_384, 64), cut(256, 2048, 64), cut(8, 4096, 64)] == [32, 8, 1, 1]
    assert cut(0, 65_536, 64) == 1
    empty = draw(2048, batch=0, heads=1, key_width=3, value_width=2, dtype=torch.float32)
    assert all(x.shape[0] == 0 for x in results(empty, fast_weights, rule="delta"))


@pytest.mark.parametrize("key_width, value_width", [(36, 72), (48, 20), (40, 48), (48, 80)])
def test_columns_of_zeros_up_to_whole_tiles_change_nothing(key_width, value_width):
    from muse_kernels.torch import fast_weights as by_torch
    from muse_kernels.triton.fast_weights.operator import _whole_tiles

    p = draw(40, batch=1, heads=2, key_width=key_width, value_width=value_width, resets=True)
    query, key, value, initial = _whole_tiles(p.query, p.key, p.value, p.initial)
    assert query.shape[-1] == key.shape[-1] == (key_width if key_width % 16 == 0 else 64)
    assert value.shape[-1] == (value_width if value_width % 16 == 0 else 1 << (value_width - 1).bit_length())
    rest = {"rule": "delta", "resets": p.resets}
    want = by_torch(p.query, p.key, p.value, p.log_decay, p.rate, initial=p.initial, **rest)
    got = by_torch(query, key, value, p.log_decay, p.rate, initial=initial, **rest)
    torch.testing.assert_close(got[0][..., :value_width], want[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1][..., :key_width, :value_width], want[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_under_activation_checkpointing(rule):
    from torch.utils.checkpoint import checkpoint

    problem = draw(20, batch=1, heads=1, key_width=16, value_width=16, dtype=torch.float32)
    call = lambda *x: fast_weights(*x, rule=rule)[0].sum()  # noqa: E731
    plain = torch.autograd.grad(call(*problem.leaves[:5]), problem.leaves[:5])
    again = torch.autograd.grad(checkpoint(call, *problem.leaves[:5], use_reentrant=False), problem.leaves[:5])
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)
