"""Stored matrices: what they give back, and what they weigh."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from muse_koopman.maps import CompressedEmbedding, CompressedLinear
from muse_koopman.options import GROUP
from muse_koopman.sizes import bisected, model_bytes, uncompressed_bytes
from muse_koopman.storage import Dense, Int4, Int8, Sparse, stored, stored_bytes
from torch import nn
from torch.nn import functional as F

SHAPES = [(5, 7), (64, 48), (33, 130), (1, 300), (257, 16)]


def matrix_of(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("store", ["fp32", "int8", "int4", "sparse"])
def test_a_form_weighs_what_is_said_and_comes_back_from_a_file(store: str, shape: tuple[int, int]) -> None:
    kept = shape[0] * shape[1] // 3 + 1 if store == "sparse" else None
    form = stored(matrix_of(shape), store, kept)
    assert model_bytes(form) == stored_bytes(*shape, store, kept)
    again = stored(torch.randn(shape), store, kept)
    again.load_state_dict(safetensors.torch.load(safetensors.torch.save(form.state_dict())))
    assert torch.equal(again.dense(), form.dense())
    x = torch.randn(3, 2, shape[1])
    torch.testing.assert_close(form(x), F.linear(x, form.dense()), rtol=1e-4, atol=1e-4)


def test_a_ratio_counts_every_map_and_the_embedding_as_fp32() -> None:
    """Whatever they are stored in: a second compression is measured against the same bytes as the first."""
    def made(embedding: nn.Module, first: nn.Module, second: nn.Module) -> nn.ModuleDict:
        return nn.ModuleDict({"embedding": embedding, "first": first, "second": second, "norm": nn.LayerNorm(48)})

    bias = torch.ones(64)
    plain = made(nn.Embedding(100, 48), nn.Linear(48, 64), nn.Linear(48, 64, bias=False))
    factors = CompressedLinear(stored(torch.randn(64, 5), "int8"), stored(torch.randn(5, 48), "int4"), bias)
    stored_table = CompressedEmbedding(stored(torch.randn(100, 48), "int8"))
    other = made(stored_table, factors, CompressedLinear(stored(torch.randn(64, 48), "sparse", 99)))
    assert uncompressed_bytes(other) == uncompressed_bytes(plain) == model_bytes(plain) > 2 * model_bytes(other)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_off_by_half_a_step_of_its_row(shape: tuple[int, int]) -> None:
    matrix = matrix_of(shape)
    form = Int8(matrix)
    step = matrix.abs().amax(1, keepdim=True) / 127
    assert ((form.dense() - matrix).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_is_off_by_little_more_than_half_a_step_of_its_group(shape: tuple[int, int]) -> None:
    """A shorter range is taken only where the squares of the errors of a group get less by it."""
    matrix = matrix_of(shape)
    error = Int4(matrix).dense() - matrix
    for first in range(0, shape[1], GROUP):
        part = matrix[:, first : first + GROUP]
        step = part.abs().amax(1) / 8
        plain = (part.shape[1] * step.square() / 4).sqrt() + step  # the end of other sign may be cut by one step
        assert (error[:, first : first + GROUP].norm(dim=1) <= plain + 1e-6).all()


def test_int4_ends_its_range_where_the_error_is_least() -> None:
    """Of normal entries short of the largest, which then are cut off: better than the range of all, in every group that
    does so."""
    matrix = torch.randn(64, 2 * GROUP, generator=torch.Generator().manual_seed(0))
    groups = matrix.unflatten(1, (-1, GROUP))
    scale = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    whole = (groups / scale).round().clamp(-8, 7) * scale
    errors = [(one - groups).square().sum(-1) for one in (Int4(matrix).dense().view_as(groups), whole)]
    assert bool((errors[0] <= errors[1] * (1 + 1e-5)).all()) and errors[0].sum() < 0.95 * errors[1].sum()


def test_int4_holds_its_own_levels_exactly() -> None:
    levels = torch.arange(-8, 8).float().repeat(4)[None] * 0.25
    assert torch.equal(Int4(levels).dense(), levels)


def test_rows_of_zeros_stay_zero() -> None:
    for store in ("int8", "int4"):
        assert not stored(torch.zeros(3, 40), store).dense().any()


def test_sparse_keeps_the_largest_entries_alone() -> None:
    matrix = matrix_of((9, 11))
    dense = Sparse(matrix, 20).dense()
    assert (dense != 0).sum() == 20
    kept = dense != 0
    assert torch.equal(dense[kept], matrix[kept]) and matrix[~kept].abs().max() <= matrix[kept].abs().min()


@pytest.mark.parametrize("shape", [(5, 7), (64, 48), (33, 130), (40, 160), (257, 2)])
@pytest.mark.parametrize("rows", [1, 37])
def test_bf16_products_of_int8_on_a_cpu_are_those_of_the_dense_matrix(shape: tuple[int, int], rows: int) -> None:
    """torch's packed product checks no shapes (2.13): only those that it is made for may reach it."""
    form, x = Int8(matrix_of(shape)), torch.randn(2, rows, shape[1])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = form(x)
    due = F.linear(x, form.dense())
    assert found.dtype == torch.bfloat16
    assert (found.float() - due).abs().max() <= 0.02 * due.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("rows", [1, 3])
def test_one_row_of_int8_on_a_gpu_makes_no_copy_of_the_matrix(rows: int) -> None:
    form, x = Int8(matrix_of((96, 130))).cuda().eval(), torch.randn(rows, 130, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        found = form(x)
    due = F.linear(x, form.dense())
    assert found.dtype == torch.bfloat16 and (found.float() - due).abs().max() <= 0.02 * due.abs().max()
    assert (form._served is None) == (rows == 1)


def test_a_map_of_a_rank_is_the_product_of_its_factors() -> None:
    left, right = matrix_of((10, 3)), matrix_of((3, 8))
    linear = CompressedLinear(Dense(left), Dense(right), torch.ones(10))
    x = torch.randn(4, 8)
    torch.testing.assert_close(linear(x), x @ right.T @ left.T + 1)
    torch.testing.assert_close(linear.weight, left @ right)
    assert (linear.out_features, linear.in_features) == (10, 8)


def test_the_least_strength_that_reaches_a_goal_is_found() -> None:
    assert bisected(lambda x: int(1000 / x), 100, 1.0, 1e6) == pytest.approx(10.0, rel=0.02)
    assert bisected(lambda x: 5, 4, 1.0, 10.0) is None
    assert bisected(lambda x: 5, 5, 1.0, 10.0) == 1.0


@pytest.mark.parametrize("store", ["fp32", "int8", "int4", "sparse"])
def test_what_is_kept_for_evaluation_follows_what_is_stored(store: str) -> None:
    shape, kept = (9, 40), 60 if store == "sparse" else None
    form, other = stored(matrix_of(shape), store, kept).eval(), stored(-2 * matrix_of(shape), store, kept)
    x = torch.randn(3, 40)
    with torch.no_grad():
        first = form(x)
        assert torch.equal(form(x), first)
        form.load_state_dict(other.state_dict())
        torch.testing.assert_close(form(x), F.linear(x, other.dense()))
        assert not torch.allclose(form(x), first)
        for tensor in form.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(3)
        torch.testing.assert_close(form(x), 3 * F.linear(x, other.dense()))
        double = form.double()(x.double())
    torch.testing.assert_close(double, 3 * F.linear(x, other.dense()).double(), rtol=1e-5, atol=1e-5)
    assert set(form.state_dict()) == set(other.state_dict())


def test_pruned_entries_learn_through_what_is_kept_for_evaluation() -> None:
    form = Sparse(matrix_of((6, 8)), 10).eval()
    x = torch.randn(4, 8)
    with torch.no_grad():
        form(x)
    form(x).square().sum().backward()
    assert form.values.grad is not None and form.values.grad.any()
