"""Fast weights by Triton kernels: registered custom operators, so that a compiled model keeps its graph whole."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...arguments import Call, Layout, checked
from ...refusals import WIDEST
from ...torch.fast_weights import fast_weights as by_torch
from ..memory import shared_memory, unit_last_stride
from . import launch
from . import pieces as in_pieces

WIDEST_KEY, WIDEST_VALUE = WIDEST["fast_weights"]["key"], WIDEST["fast_weights"]["value"]
"""A program holds all key columns of a head and a tile of its value columns."""


@checked
def fast_weights(call: Call, layout: Layout) -> tuple[Tensor, Tensor]:
    """Chunkwise fast weights on the GPU; arguments, results and errors as `muse_kernels.fast_weights`.

    bfloat16 or float32 inputs, products of the former accumulated in float32; K up to 128 and M up to 512. The chunk
    becomes a power of two from 16 to 64 (16 in float32). A second derivative recomputes by torch operations.
    """
    operands, pieces = _prepared(call, layout)
    output, final, *_ = _forward(*operands, pieces)
    return output[..., : layout.value_width], final[..., : layout.key_width, : layout.value_width]


def _prepared(call: Call, layout: Layout) -> tuple[tuple, int]:
    """What the operator takes, up to the number of pieces, and that number. ValueError for what it does not compute."""
    query, key, value, log_decay, rate, rule, initial, resets, read, chunk = call
    if layout.state_dtype == torch.float64:
        raise ValueError("fast_weights: the triton kernels compute in float32; use backend torch for float64")
    if layout.key_width > WIDEST_KEY or layout.value_width > WIDEST_VALUE:
        raise ValueError(
            f"fast_weights: the triton kernels hold keys up to {WIDEST_KEY} and values up to {WIDEST_VALUE} wide, got "
            f"K={layout.key_width}, M={layout.value_width}; use backend torch"
        )
    query, key, value = (unit_last_stride(x.to(layout.output_dtype)) for x in (query, key, value))
    if layout.output_dtype != torch.float32:
        query, key, value, initial = _whole_tiles(query, key, value, initial)
    largest = launch.LONGEST_SINGLE if layout.output_dtype == torch.float32 else launch.LONGEST_HALF
    size = 16
    while size < min(chunk, layout.tokens, largest):
        size *= 2
    if initial is not None:
        initial = initial.float().contiguous()
    pieces = in_pieces.pieces_of(layout.batch * layout.heads, layout.tokens, size)
    return (query, key, value, log_decay.float(), rate.float(), initial, resets, rule, read, size), pieces


def _whole_tiles(
    query: Tensor, key: Tensor, value: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Widths that no multiple of 16 is, with zeros up to a whole tile, which the kernels compute anyway.

    In half precision masked tiles of such widths come out wrong on a GPU: with Triton 3.6 on Hopper K = 36 or 40 gave
    gradients that mix chunks, while 48, 64 and 128 agree with float64. Zero columns change no result.
    """
    more_key, more_value = (launch.tile(x) - x if x % 16 else 0 for x in (key.shape[-1], value.shape[-1]))
    if more_key:
        query, key = F.pad(query, (0, more_key)), F.pad(key, (0, more_key))
    if more_value:
        value = F.pad(value, (0, more_value))
    if initial is not None and (more_key or more_value):
        initial = F.pad(initial, (0, more_value, 0, more_key))
    return query, key, value, initial


def _problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    initial: Tensor | None,
    resets: Tensor | None,
    rule: str,
    read: str,
    chunk: int,
) -> launch.Problem:
    widths, memory = (query.shape[-1], value.shape[-1]), shared_memory(query.device)
    tuning = launch.tuning_of(query.dtype, rule, *widths, memory)
    return launch.Problem(
        query, key, value, log_decay, rate, initial, resets, rule == "delta", read == "before", chunk, tuning
    )


@torch.library.custom_op("muse_kernels::fast_weights", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    initial: Tensor | None,
    resets: Tensor | None,
    rule: str,
    read: str,
    chunk: int,
    pieces: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = _problem(query, key, value, log_decay, rate, initial, resets, rule, read, chunk)
    if pieces > 1:
        output, final, residual, prepared, kept = in_pieces.forward(problem, pieces)
    else:
        output, final, residual, prepared = launch.forward(problem)
        kept = (rate.new_empty(0), rate.new_empty(0))
    return output, final, residual, *prepared, *kept


@_forward.register_fake
def _(query, key, value, log_decay, rate, initial, resets, rule, read, chunk, pieces):
    batch, tokens, heads, key_width = query.shape
    output = value.new_empty(batch, tokens, heads, value.shape[-1])
    delta = rule == "delta"
    chunks = (tokens + chunk - 1) // chunk
    shapes = launch.prepared_shapes(batch * heads * pieces, chunks // pieces, chunk, delta)
    return (
        output,
        rate.new_empty(batch, heads, key_width, value.shape[-1]),
        value.new_empty(output.shape if delta else 0),
        *(x.new_empty(shape) for x, shape in zip((query, query, rate, rate), shapes, strict=True)),
        *(rate.new_empty(shape) for shape in in_pieces.shapes(query, value, pieces)),
    )


@torch.library.custom_op("muse_kernels::fast_weights_backward", mutates_args=())
def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    initial: Tensor | None,
    resets: Tensor | None,
    residual: Tensor,
    scores: Tensor,
    inverse: Tensor,
    factors: Tensor,
    kept: Tensor,
    starts: Tensor,
    transitions: Tensor,
    grad_output: Tensor,
    grad_final: Tensor | None,
    rule: str,
    read: str,
    chunk: int,
    pieces: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = _problem(query, key, value, log_decay, rate, initial, resets, rule, read, chunk)
    grad_output = unit_last_stride(grad_output)
    grad_final = None if grad_final is None else grad_final.contiguous()
    stored = residual if problem.delta else value
    prepared = launch.Prepared(scores, inverse, factors, kept)
    if pieces > 1:
        cuts = in_pieces.Pieces(starts, transitions)
        return in_pieces.backward(problem, stored, prepared, cuts, grad_output, grad_final, pieces)
    return launch.backward(problem, stored, prepared, grad_output, grad_final)


@_backward.register_fake
def _(query, key, value, log_decay, rate, *_):
    batch, _, heads, key_width = query.shape
    leaves = tuple(x.new_empty(x.shape) for x in (query, key, value, log_decay, rate))
    return *leaves, rate.new_empty(batch, heads, key_width, value.shape[-1])


def _save(ctx, inputs, output):
    *tensors, ctx.rule, ctx.read, ctx.chunk, ctx.pieces = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_output, grad_final, *_):
    saved = ctx.saved_tensors  # once: activation checkpointing lets nobody ask again
    inputs, prepared = saved[:7], saved[7:]
    query, _, value, _, _, initial, _ = inputs
    if grad_output is None:
        grad_output = value.new_zeros(*query.shape[:3], value.shape[-1])
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*inputs, grad_output, grad_final)):
        gradients = _differentiable_gradients(ctx, inputs, grad_output, grad_final)
    else:
        options = (ctx.rule, ctx.read, ctx.chunk, ctx.pieces)
        gradients = _backward(*inputs, *prepared, grad_output, grad_final, *options)
    *leaves, grad_initial = gradients
    return *leaves, None if initial is None else grad_initial, None, None, None, None, None


def _differentiable_gradients(ctx, inputs, grad_output, grad_final):
    """The same gradients by torch operations that can be differentiated again."""
    *leaves, initial, resets = inputs
    if initial is None:
        initial = leaves[0].new_zeros(
            (leaves[0].shape[0], *leaves[0].shape[2:], leaves[2].shape[-1]), dtype=torch.float32
        )
    leaves = [x if x.requires_grad else x.detach().requires_grad_() for x in (*leaves, initial)]
    results = by_torch(*leaves[:5], rule=ctx.rule, read=ctx.read, chunk=ctx.chunk, initial=leaves[5], resets=resets)
    if grad_final is None:
        grad_final = torch.zeros_like(results[1])
    return torch.autograd.grad(results, leaves, (grad_output, grad_final), create_graph=True)


_forward.register_autograd(_gradients, setup_context=_save)
