"""Sorting by expert and grouped products against the sum written out, with gradients; on a GPU too if there is one."""

from __future__ import annotations

import pytest
import torch
from muse_scattering_router.dispatch import sort, to_rows, to_tokens, within_capacity
from muse_scattering_router.products import grouped, serves
from torch import Tensor

T, K, E, D, F = 40, 3, 5, 16, 24
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


def routes(seed: int, *, every_slot: bool, experts: int = E) -> tuple[Tensor, Tensor]:
    """Different experts per token and weights; some slots unused, one expert too."""
    generator = torch.Generator().manual_seed(seed)
    expert = torch.stack([torch.randperm(experts - 1, generator=generator)[:K] for _ in range(T)])
    weight = torch.rand(T, K, generator=generator, dtype=torch.float64)
    if not every_slot:
        unused = torch.rand(T, K, generator=generator) < 0.4
        expert, weight = expert.masked_fill(unused, -1), weight.masked_fill(unused, 0.0)
    return expert, weight


def mixed(x: Tensor, matrices: list[Tensor], expert: Tensor, weight: Tensor, *, every_slot: bool) -> Tensor:
    order = sort(expert, len(matrices), every_slot=every_slot)
    weight = weight.masked_fill(expert < 0, 0.0)
    rows = grouped(to_rows(x, order, K), matrices, order.ends)
    rows = rows * weight.flatten().gather(0, order.slot).to(rows.dtype)[:, None]
    return to_tokens(rows, order, K)


def expected(x: Tensor, matrices: list[Tensor], expert: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([
        sum((weight[t, k].to(x.dtype) * matrices[e] @ x[t] for k, e in enumerate(expert[t].tolist()) if e >= 0),
            start=x.new_zeros(matrices[0].shape[0]))
        for t in range(T)
    ])


@pytest.mark.parametrize("every_slot", [True, False])
def test_products_are_those_of_each_token_with_its_experts(every_slot: bool) -> None:
    expert, weight = routes(1, every_slot=every_slot)
    x = torch.randn(T, D, dtype=torch.float64, requires_grad=True)
    matrices = [torch.randn(F, D, dtype=torch.float64, requires_grad=True) for _ in range(E)]
    weight.requires_grad_()
    inputs = [x, weight, *matrices]
    found, due = (mixed(x, matrices, expert, weight, every_slot=every_slot), expected(x, matrices, expert, weight))
    torch.testing.assert_close(found, due)
    upstream = torch.randn_like(due)
    actual = torch.autograd.grad(found, inputs, upstream)
    for left, right in zip(actual, torch.autograd.grad(due, inputs, upstream, allow_unused=True)):
        torch.testing.assert_close(left, torch.zeros_like(left) if right is None else right)


@ON_GPU
@pytest.mark.parametrize("every_slot", [True, False])
def test_grouped_mm_gives_what_the_loop_gives(every_slot: bool) -> None:
    """bf16 on the GPU against float64; rows that nobody uses may hold anything and must not leak."""
    expert, weight = (value.cuda() for value in routes(2, every_slot=every_slot))
    x = torch.randn(T, D, device="cuda", dtype=torch.bfloat16)
    matrices = [torch.randn(F, D, device="cuda").bfloat16().float() for _ in range(E)]
    assert serves(x.device, x.dtype, matrices[0]), "this GPU runs the loop"
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        inputs = [x.detach().to(dtype).requires_grad_(), weight.detach().clone().requires_grad_()]
        kept = torch.promote_types(dtype, torch.float32)
        inputs += [matrix.detach().to(kept).requires_grad_() for matrix in matrices]
        found = mixed(inputs[0], inputs[2:], expert, inputs[1], every_slot=every_slot)
        gradients = torch.autograd.grad(found.double().square().sum(), inputs, allow_unused=True)
        results.append([found, *gradients])
    for low, exact in zip(*results):
        assert (low is None) == (exact is None) and torch.isfinite(low).all()
        assert (low.double() - exact).abs().max() <= 0.03 * exact.abs().max()


def test_rows_of_nobody_do_not_matter() -> None:
    """What grouped_mm leaves after the last end may be anything, also in the gradient."""
    expert, _ = routes(3, every_slot=False)
    order = sort(expert, E, every_slot=False)
    used = int(order.ends[-1])
    assert 0 < used < T * K
    rows = torch.randn(T * K, D, dtype=torch.float64)
    clean = to_tokens(rows, order, K)
    rows[used:] = torch.nan
    assert torch.equal(to_tokens(rows, order, K), clean)
    x = torch.randn(T, D, requires_grad=True)
    (gradient,) = torch.autograd.grad(to_rows(x, order, K), x, rows.float())
    assert torch.isfinite(gradient).all()


def test_capacity_drops_the_latest_choices_of_a_row() -> None:
    expert = torch.tensor([[[0, 1], [0, 2], [0, 1], [3, 0]], [[2, 1], [2, 3], [-1, -1], [0, 2]]])
    kept = within_capacity(expert, 4, 2)
    assert kept.tolist() == [[[0, 1], [0, 2], [-1, 1], [3, -1]], [[2, 1], [2, 3], [-1, -1], [0, -1]]]
