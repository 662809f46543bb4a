"""The experts of a swiglu layer in one step forward and one back, for bf16 on a GPU: torch's grouped products, and one
pass over the data between them. ``dispatch`` and ``products`` do the same by parts.

Letters: T tokens, K slots, R = T K rows, E experts, D width, F hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from muse_scattering_router.fused_routing import Places
from muse_scattering_router.products import stack

BLOCK = 1024


def swiglu_experts(
    x: Tensor, weight: Tensor, places: Places, inputs: Sequence[Tensor], outputs: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """Σ_slots weight · W_e (silu(gate) ⊙ value) with [value, gate] = V_e x: x (T, D), ``weight`` (T, K), E matrices
    (2 F, D) and E (D, F), products in ``dtype`` → (T, D) in it."""
    result: Tensor = _SwigluExperts.apply(x, weight, places, dtype, *inputs, *outputs)
    return result


class _SwigluExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, places: Places, dtype: torch.dtype, *matrices: Tensor
    ) -> Tensor:
        count = len(matrices) // 2
        first, second = stack(matrices[:count], dtype), stack(matrices[count:], dtype)
        rows, scale = to_rows(x, places, dtype, weight)
        hidden = F.grouped_mm(rows, first.transpose(1, 2), offs=places.ends)
        mixed = weighted_swiglu(hidden, scale, places.ends)
        found = F.grouped_mm(mixed, second.transpose(1, 2), offs=places.ends)
        ctx.save_for_backward(rows, scale, hidden, first, second, *places)
        ctx.dtypes = x.dtype, weight.dtype, matrices[0].dtype
        return summed(found, places, dtype)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        rows, scale, hidden, first, second, row, ends = ctx.saved_tensors
        places, (of_x, of_weight, of_matrix) = Places(row, ends), ctx.dtypes
        upstream, _ = to_rows(gradient, places, rows.dtype)
        mixed = F.grouped_mm(upstream, second, offs=ends)
        to_hidden, to_scale = weighted_swiglu_backward(hidden, scale, mixed, ends)
        to_second = F.grouped_mm(upstream.T, mixed, offs=ends).to(of_matrix)
        del upstream, mixed  # the largest sum of what is held at once lies below
        to_x, to_weight = summed(F.grouped_mm(to_hidden, first, offs=ends), places, of_x, to_scale, of_weight)
        to_first = F.grouped_mm(to_hidden.T, rows, offs=ends).to(of_matrix)
        return to_x, to_weight, None, None, *to_first.unbind(), *to_second.unbind()


def to_rows(x: Tensor, places: Places, dtype: torch.dtype, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (T, D) → (R, D) in ``dtype``, and ``weight`` (T, K) → (R,) fp32; what unused rows hold is left open."""
    x = x.contiguous()
    (tokens, width), slots = x.shape, places.row.shape[1]
    rows = torch.empty(tokens * slots, width, dtype=dtype, device=x.device)
    weight = weight if weight is None else weight.contiguous()
    scale = rows if weight is None else torch.empty(tokens * slots, dtype=torch.float32, device=x.device)
    if tokens:
        _to_rows[(tokens,)](x, places.row, rows, x if weight is None else weight, scale, width, slots,
                            weight is not None, BLOCK)
    return rows, scale


def summed(
    rows: Tensor, places: Places, dtype: torch.dtype, scale: Tensor | None = None,
    scale_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """rows (R, D), summed over a token's used slots → (T, D) in ``dtype``; and ``scale`` (R,) by slot → (T, K), zero in
    unused ones."""
    rows, (tokens, slots) = rows.contiguous(), places.row.shape
    output = torch.empty(tokens, rows.shape[1], dtype=dtype, device=rows.device)
    weighs = scale is not None
    weight = torch.empty(tokens, slots, dtype=scale_dtype, device=rows.device) if weighs else output
    if tokens:
        _summed[(tokens,)](
            rows, places.row, output, scale if weighs else rows, weight, rows.shape[1], slots, weighs, BLOCK
        )
    return output, weight


def weighted_swiglu(hidden: Tensor, scale: Tensor, ends: Tensor) -> Tensor:
    """scale · silu(gate) ⊙ value of ``hidden`` (R, 2 F) = [value, gate] and ``scale`` (R,), up to the last end."""
    hidden = hidden.contiguous()
    rows, units = hidden.shape[0], hidden.shape[1] // 2
    output = hidden.new_empty(rows, units)
    if rows:
        _swiglu[(rows,)](hidden, scale, output, ends, len(ends), units, BLOCK)
    return output


def weighted_swiglu_backward(
    hidden: Tensor, scale: Tensor, upstream: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``weighted_swiglu`` with respect to ``hidden`` and ``scale``. Its result takes the place of
    ``upstream`` (R, F), so that it need not be kept for the backward pass."""
    assert upstream.is_contiguous()
    to_hidden, to_scale = torch.empty_like(hidden), torch.empty_like(scale)
    if len(hidden):
        _swiglu_backward[(len(hidden),)](
            hidden, scale, upstream, to_hidden, to_scale, ends, len(ends), hidden.shape[1] // 2, BLOCK
        )
    return to_hidden, to_scale


@triton.jit
def _to_rows(x, row, rows, weight, scale, width, slots, weighs: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    if weighs:
        for slot in range(0, slots):
            place = tl.load(row + token * slots + slot)
            own = tl.load(weight + token * slots + slot).to(tl.float32)
            tl.store(scale + place, own, mask=place >= 0)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        value = tl.load(x + token * width + column, mask=inside).to(rows.dtype.element_ty)
        for slot in range(0, slots):
            place = tl.load(row + token * slots + slot).to(tl.int64)
            tl.store(rows + place * width + column, value, mask=inside & (place >= 0))


@triton.jit
def _summed(rows, row, output, scale, weight, width, slots, weighs: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    if weighs:
        for slot in range(0, slots):
            place = tl.load(row + token * slots + slot)
            own = tl.load(scale + place, mask=place >= 0, other=0.0)
            tl.store(weight + token * slots + slot, own.to(weight.dtype.element_ty))
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for slot in range(0, slots):
            place = tl.load(row + token * slots + slot).to(tl.int64)
            total += tl.load(rows + place * width + column, mask=inside & (place >= 0), other=0.0).to(tl.float32)
        tl.store(output + token * width + column, total.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(hidden, scale, output, ends, experts, units, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(ends + experts - 1):
        factor = tl.load(scale + row)
        for start in range(0, units, BLOCK):
            unit = start + tl.arange(0, BLOCK)
            inside = unit < units
            value = tl.load(hidden + row * 2 * units + unit, mask=inside).to(tl.float32)
            gate = tl.load(hidden + (row * 2 + 1) * units + unit, mask=inside).to(tl.float32)
            mixed = factor * value * gate * tl.sigmoid(gate)
            tl.store(output + row * units + unit, mixed.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(
    hidden, scale, upstream, to_hidden, to_scale, ends, experts, units, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(ends + experts - 1):
        factor = tl.load(scale + row)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, units, BLOCK):
            unit = start + tl.arange(0, BLOCK)
            inside = unit < units
            value = tl.load(hidden + row * 2 * units + unit, mask=inside, other=0.0).to(tl.float32)
            gate = tl.load(hidden + (row * 2 + 1) * units + unit, mask=inside, other=0.0).to(tl.float32)
            given = tl.load(upstream + row * units + unit, mask=inside, other=0.0).to(tl.float32)
            share = tl.sigmoid(gate)
            mixed = value * gate * share
            total += given * mixed
            tl.store(upstream + row * units + unit, (factor * mixed).to(upstream.dtype.element_ty), mask=inside)
            to_value = factor * given * gate * share
            to_gate = factor * given * value * share * (1 + gate * (1 - share))
            tl.store(to_hidden + row * 2 * units + unit, to_value.to(to_hidden.dtype.element_ty), mask=inside)
            tl.store(to_hidden + (row * 2 + 1) * units + unit, to_gate.to(to_hidden.dtype.element_ty), mask=inside)
        tl.store(to_scale + row, tl.sum(total, 0))
