"""Trace attention by Triton kernels: a registered custom operator, so that a compiled model keeps its graph whole."""

import torch
from torch import Tensor

from ...double_backward import differentiated_again, gradients_by_torch
from ...torch.trace_attention import rows as rows_by_torch
from ...torch.trace_attention import scales as scales_by_torch
from ...trace_arguments import Problem, Traced, checked
from ..memory import unit_last_stride
from . import launch

WIDEST = 128
"""Key and value channels of a head."""


@checked
def trace_attention(problem: Problem) -> Traced:
    """Streaming attention on the GPU; arguments, results and errors as `muse_kernels.trace_attention`.

    float16, bfloat16 or float32, products accumulated in float32, sums of squares in float64; K and M up to 128,
    fastest at 64 and 128. Keeps O(N) a head for the backward pass. A second derivative recomputes by torch operations.
    """
    if problem.state_dtype == torch.float64:
        raise ValueError("trace_attention: the triton kernels compute in float32; use backend torch for float64")
    widest = max(problem.query.shape[-1], problem.value.shape[-1])
    if widest > WIDEST:
        raise ValueError(f"trace_attention: the triton kernels hold heads up to {WIDEST} wide, got {widest}")
    query, key, value = (unit_last_stride(x) for x in (problem.query, problem.key, problem.value))
    squares = None if problem.squares is None else problem.squares.contiguous()
    resets = None if problem.resets is None else problem.resets.contiguous()
    output, scale, sums, *_ = _forward(
        query, key, value, problem.bound, squares, resets, problem.first, problem.logit_scale, problem.knee
    )
    return Traced(output, scale.transpose(1, 2), sums.transpose(1, 2))


@torch.library.custom_op("muse_kernels::trace_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, bound: Tensor, squares: Tensor | None, resets: Tensor | None,
    first: Tensor | None, logit_scale: float, knee: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = launch.Inputs(query, key, value, bound, squares, resets, first, logit_scale, knee)
    output, scale, sums, rows = launch.forward(inputs)
    return output, scale, sums, *rows


@_forward.register_fake
def _(query, key, value, bound, squares, resets, first, logit_scale, knee):
    batch, tokens, heads, _ = query.shape
    output = query.new_empty(batch, tokens, heads, value.shape[-1])
    return output, *(query.new_empty(batch, heads, tokens, dtype=torch.float32) for _ in range(7))


@torch.library.custom_op("muse_kernels::trace_attention_backward", mutates_args=())
def _backward(
    query: Tensor, key: Tensor, value: Tensor, bound: Tensor, squares: Tensor | None, resets: Tensor | None,
    first: Tensor | None, output: Tensor, scale: Tensor, rows: list[Tensor], to_output: Tensor,
    to_scale: Tensor | None, to_sums: Tensor | None, logit_scale: float, knee: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = launch.Inputs(query, key, value, bound, squares, resets, first, logit_scale, knee)
    return tuple(launch.backward(inputs, output, scale, launch.Rows(*rows), to_output, to_scale, to_sums))


@_backward.register_fake
def _(query, key, value, bound, squares, resets, first, output, scale, *_):
    return *(x.new_empty(x.shape) for x in (query, key, value, scale)), scale.new_empty(scale.shape[:2])


def _save(ctx, inputs, output):
    *tensors, ctx.logit_scale, ctx.knee = inputs
    mixed, scale, _, *rows = output
    ctx.save_for_backward(*tensors, mixed, scale, *rows)
    ctx.set_materialize_grads(False)


def _gradients(ctx, to_output, to_scale, to_sums, *_):
    saved = ctx.saved_tensors
    query, key, value, bound, squares, resets, first = saved[:7]
    mixed, scale, *rows = saved[7:]
    if to_output is None:
        to_output = torch.zeros_like(mixed)
    if differentiated_again(query, key, value, bound, squares, to_output, to_scale, to_sums):

        def by_torch(query, key, value, bound, squares):
            problem = Problem(query, key, value, bound, squares, resets, first, None, ctx.knee, ctx.logit_scale)
            found, own = rows_by_torch(problem)
            factor, sums = scales_by_torch(own, bound, squares, resets, ctx.knee)
            scaled = (found * factor[..., None]).to(query.dtype)
            return scaled, factor.transpose(1, 2), sums.transpose(1, 2)

        given = [torch.zeros_like(scale) if x is None else x for x in (to_scale, to_sums)]
        found = gradients_by_torch(by_torch, (query, key, value, bound, squares), (to_output, *given))
        return *found, None, None, None, None
    dq, dk, dv, to_bound, to_initial = _backward(
        query, key, value, bound, squares, resets, first, mixed, scale, rows, to_output, to_scale, to_sums,
        ctx.logit_scale, ctx.knee,
    )  # fmt: skip
    to_squares = None if squares is None else to_initial
    return dq, dk, dv, to_bound.transpose(1, 2), to_squares, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
