"""What experts do between their matrix products, in one pass each on a GPU.

Letters: R rows, F hidden units, T tokens, K slots, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1024


def weighted_swiglu(hidden: Tensor, weight: Tensor) -> Tensor:
    """weight · silu(gate) ⊙ value of ``hidden`` (R, 2 F) = [value, gate] and ``weight`` (R,) → (R, F).

    Written out, the forward pass reads and writes the hidden units three times and the backward pass nine times; this
    does each once.
    """
    result: Tensor = _WeightedSwiglu.apply(hidden, weight)
    return result


class _WeightedSwiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        hidden, weight = hidden.contiguous(), weight.contiguous()
        ctx.save_for_backward(hidden, weight)
        rows, units = hidden.shape[0], hidden.shape[1] // 2
        output = hidden.new_empty(rows, units)
        if rows:
            _forward[(rows,)](hidden, weight, output, units, BLOCK)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        to_hidden, to_weight = torch.empty_like(hidden), torch.empty_like(weight)
        if len(hidden):
            _backward[(len(hidden),)](
                hidden, weight, gradient.contiguous(), to_hidden, to_weight, hidden.shape[1] // 2, BLOCK
            )
        return to_hidden, to_weight


def summed(rows: Tensor, row: Tensor, used: Tensor | None) -> Tensor:
    """rows (R, D) at ``row`` (T, K), summed over the slots that are ``used`` (T, K), all when None → (T, D)."""
    rows, row = rows.contiguous(), row.contiguous()
    tokens, slots = row.shape
    output = rows.new_empty(tokens, rows.shape[1])
    if tokens:
        used = row if used is None else used.to(torch.int8).contiguous()
        _summed[(tokens,)](rows, row, used, output, rows.shape[1], slots, used is not row, BLOCK)
    return output


@triton.jit
def _summed(rows, row, used, output, width, slots, ragged: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for slot in range(0, slots):
            place = tl.load(row + token * slots + slot)
            here = inside
            if ragged:
                here = inside & (tl.load(used + token * slots + slot) != 0)
            total += tl.load(rows + place * width + column, mask=here, other=0.0).to(tl.float32)
        tl.store(output + token * width + column, total.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _forward(hidden, weight, output, units, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(weight + row).to(tl.float32)
    for start in range(0, units, BLOCK):
        unit = start + tl.arange(0, BLOCK)
        inside = unit < units
        value = tl.load(hidden + row * 2 * units + unit, mask=inside).to(tl.float32)
        gate = tl.load(hidden + (row * 2 + 1) * units + unit, mask=inside).to(tl.float32)
        mixed = scale * value * gate * tl.sigmoid(gate)
        tl.store(output + row * units + unit, mixed.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _backward(hidden, weight, gradient, to_hidden, to_weight, units, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(weight + row).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, units, BLOCK):
        unit = start + tl.arange(0, BLOCK)
        inside = unit < units
        value = tl.load(hidden + row * 2 * units + unit, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(hidden + (row * 2 + 1) * units + unit, mask=inside, other=0.0).to(tl.float32)
        upstream = tl.load(gradient + row * units + unit, mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        total += upstream * value * gate * share
        to_value = scale * upstream * gate * share
        to_gate = scale * upstream * value * share * (1 + gate * (1 - share))
        tl.store(to_hidden + row * 2 * units + unit, to_value.to(to_hidden.dtype.element_ty), mask=inside)
        tl.store(to_hidden + (row * 2 + 1) * units + unit, to_gate.to(to_hidden.dtype.element_ty), mask=inside)
    tl.store(to_weight + row, tl.sum(total, 0).to(to_weight.dtype.element_ty))
