"""Launches of the kernels, and the block sizes they were measured with."""

from typing import NamedTuple

import torch
from torch import Tensor

from .gradient_kernels import queries_gradient_kernel, slots_gradient_kernel
from .rows_kernel import rows_kernel
from .scale_kernels import inner_kernel, scaled_kernel, scales_gradient_kernel, scales_kernel

LOG2_E = 1.4426950408889634


class Blocks(NamedTuple):
    """Queries and slots of a block, warps and pipeline stages of a program."""

    rows: int
    slots: int
    warps: int
    stages: int


class Tuning(NamedTuple):
    """Of the three kernels that form the rows."""

    forward: Blocks
    slots: Blocks
    queries: Blocks


HALF = {
    64: Tuning(Blocks(64, 64, 4, 3), Blocks(64, 64, 4, 3), Blocks(128, 64, 4, 3)),
    128: Tuning(Blocks(64, 64, 4, 3), Blocks(32, 64, 4, 3), Blocks(128, 64, 8, 3)),
}
"""By the padded width of a head, in float16 and bfloat16."""
SINGLE = Tuning(Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 2))
"""In float32, whose products are exact and slow."""
TOKENS = 1024
"""That a pass over the scales holds at once."""


class Inputs(NamedTuple):
    """Tensors of a call as the kernels take them; shapes as in `trace_arguments.Problem`."""

    query: Tensor
    key: Tensor
    value: Tensor
    bound: Tensor
    squares: Tensor | None
    resets: Tensor | None
    first: Tensor | None
    logit_scale: float
    knee: float


class Rows(NamedTuple):
    """What the forward pass keeps of every row, (B, H, N) float32 each."""

    logarithm: Tensor
    squares: Tensor
    by_before: Tensor
    by_after: Tensor
    by_bound: Tensor


def tuning_of(x: Inputs) -> Tuning:
    """The block sizes for the dtype and the wider of the two padded widths."""
    if x.query.dtype == torch.float32:
        return SINGLE
    return HALF[64 if max(x.query.shape[-1], x.value.shape[-1]) <= 64 else 128]


def _lanes(width: int) -> int:
    lanes = 16
    while lanes < width:
        lanes *= 2
    return lanes


def _options(x: Inputs, blocks: Blocks) -> dict:
    key_width, value_width = x.query.shape[-1], x.value.shape[-1]
    return {
        "FIRST": x.first is not None,
        "R": blocks.rows,
        "S": blocks.slots,
        "K": _lanes(key_width),
        "M": _lanes(value_width),
        "EVEN_K": _lanes(key_width) == key_width,
        "EVEN_M": _lanes(value_width) == value_width,
        "PRECISION": "ieee",
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def forward(x: Inputs) -> tuple[Tensor, Tensor, Tensor, Rows]:
    """Output (B, N, H, M), scale and Q (B, H, N), and what the backward pass needs."""
    batch, tokens, heads, width = x.query.shape
    value_width = x.value.shape[-1]
    output = x.query.new_empty(batch, tokens, heads, value_width)
    scale, sums, *kept = (
        torch.empty((batch, heads, tokens), dtype=torch.float32, device=x.query.device) for _ in range(7)
    )
    rows = Rows(*kept)
    if not output.numel():
        return output, scale, sums, rows
    blocks = tuning_of(x).forward
    with torch.cuda.device_of(x.query):
        rows_kernel[(batch * heads * -(-tokens // blocks.rows),)](
            *_strided(x.query, x.key, x.value), x.first, output, rows.logarithm, rows.squares, tokens,
            x.key.shape[1] - tokens, heads, heads // x.key.shape[2], x.logit_scale * LOG2_E, width, value_width,
            **_options(x, blocks),
        )  # fmt: skip
        scales_kernel[(batch * heads,)](
            rows.squares, x.bound, *x.bound.stride(), x.squares, x.resets, scale, sums, rows.by_before, rows.by_after,
            rows.by_bound, tokens, heads, x.knee, INITIAL=x.squares is not None, RESETS=x.resets is not None,
            GRADIENT=True, T=_scanned(tokens), num_warps=4,
        )  # fmt: skip
        together = 32
        scaled_kernel[(batch * heads * -(-tokens // together),)](
            output, scale, tokens, heads, value_width, T=together, M=_lanes(value_width), num_warps=4
        )
    return output, scale, sums, rows


class Gradients(NamedTuple):
    """Of query, key, value in their shapes and dtype, bound (B, H, N) and carried Q (B, H), float32."""

    query: Tensor
    key: Tensor
    value: Tensor
    bound: Tensor
    squares: Tensor


def backward(
    x: Inputs, output: Tensor, scale: Tensor, rows: Rows, to_output: Tensor, to_scale: Tensor | None,
    to_sums: Tensor | None,
) -> Gradients:  # fmt: skip
    """From the gradients of the output (B, N, H, M), the scale and Q (B, H, N)."""
    batch, tokens, heads, width = x.query.shape
    value_width, slots = x.value.shape[-1], x.key.shape[1] - tokens
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x.query, x.key, x.value))
    to_scales, inner, coefficient, means, to_bound = (torch.empty_like(scale) for _ in range(5))
    to_initial = torch.empty((batch, heads), dtype=torch.float32, device=scale.device)
    found = Gradients(dq, dk, dv, to_bound, to_initial)
    if not output.numel():
        return found._replace(key=dk.zero_(), value=dv.zero_())
    until = None if x.first is None else _until(x.first, slots + tokens)
    to_output = to_output.contiguous()
    tuning, repeat, factor = tuning_of(x), heads // x.key.shape[2], x.logit_scale * LOG2_E
    given = (*_strided(x.query, x.key, x.value, to_output), rows.logarithm, scale, coefficient, means, x.first)
    sizes = (tokens, slots, heads, repeat, factor, x.logit_scale, width, value_width)
    with torch.cuda.device_of(x.query):
        together = 32
        inner_kernel[(batch * heads * -(-tokens // together),)](
            output, to_output, scale, to_scale, *_row_strides(to_scale), inner, to_scales, tokens, heads, value_width,
            SCALE=to_scale is not None, T=together, M=_lanes(value_width), num_warps=4,
        )  # fmt: skip
        scales_gradient_kernel[(batch * heads,)](
            to_scales, to_sums, *_row_strides(to_sums), rows.by_before, rows.by_after, rows.by_bound, rows.squares,
            inner, x.resets, coefficient, means, to_bound, to_initial, tokens, heads, SUMS=to_sums is not None,
            RESETS=x.resets is not None, T=_scanned(tokens), num_warps=4,
        )  # fmt: skip
        grid = (batch * x.key.shape[2] * -(-(slots + tokens) // tuning.slots.slots),)
        slots_gradient_kernel[grid](*given, until, dk, dv, *sizes, **_options(x, tuning.slots))
        grid = (batch * heads * -(-tokens // tuning.queries.rows),)
        queries_gradient_kernel[grid](*given, dq, *sizes, **_options(x, tuning.queries))
    return found


def _strided(*tensors: Tensor) -> list:
    """Each tensor and its strides along batch, tokens and heads."""
    return [item for x in tensors for item in (x, *x.stride()[:3])]


def _row_strides(x: Tensor | None) -> tuple[int, int, int]:
    """Strides along batch, tokens and heads of (B, H, N)."""
    return (0, 0, 0) if x is None else (x.stride(0), x.stride(2), x.stride(1))


def _scanned(tokens: int) -> int:
    size = 16
    while size < min(tokens, TOKENS):
        size *= 2
    return size


def _until(first: Tensor, slots_end: int) -> Tensor:
    """(B, S + N) int32: how many of the queries have their first slot at or before each slot."""
    slot = torch.arange(slots_end, dtype=first.dtype, device=first.device).expand(first.shape[0], -1)
    return torch.searchsorted(first.contiguous(), slot.contiguous(), right=True).to(torch.int32)
