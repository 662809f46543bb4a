"""The short convolution by Triton kernels: x is read once forward and once backward, nothing else is kept."""

import torch
from torch import Tensor

from ...arguments import SHORTEST, documents
from ...double_backward import differentiated_again, gradients_by_torch
from ...signatures import convolution_of
from ...torch.short_convolution import of_documents
from ..memory import MOST_OF_AN_AXIS, unit_last_stride
from .kernels import short_convolution_backward_kernel, short_convolution_kernel

WIDEST, LONGEST = 128, 16
"""Key channels of a head, and tokens of the convolution, that a program holds."""
SHARES = 64
"""Programs that share the tokens of a channel group backward; each has a share of the taps' gradient."""
LONGEST_STRETCH, SHORTEST_STRETCH = 128, 16
"""Tokens of a stretch at most and, where tokens are few, at least: as many as the longest convolution."""
FORWARD, BACKWARD = (1024, 4), (512, 4)
"""Numbers of a token of each of its stretches that a program holds, for convolutions of up to four tokens, and its
warps."""


@convolution_of
def short_convolution(
    x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `muse_kernels.short_convolution`, in float32 or bfloat16, products in float32. Second
    derivatives recompute by torch operations."""
    if x.dtype == torch.float64:
        raise ValueError("short_convolution: the triton kernels compute in float32; use backend torch for float64")
    if key_width > WIDEST or len(taps) > LONGEST:
        raise ValueError(
            f"short_convolution: the triton kernels hold heads up to {WIDEST} wide and {LONGEST} tokens, got "
            f"K={key_width}, S={len(taps)}; use backend torch"
        )
    query, key, value = _forward(x, taps, initial, documents(resets), heads, key_width)
    return tuple(part.unflatten(-1, (heads, -1)) for part in (query, key, value))


def _lanes(key_width: int) -> int:
    lanes = 16
    while lanes < key_width:
        lanes *= 2
    return lanes


def _groups(heads: int, values: int, lanes: int) -> int:
    return 2 * heads + -(-values // lanes)


def _stretches(batch: int, tokens: int, lanes: int, span: int, numbers: int) -> tuple[int, int, int, int]:
    """Stretches that a program takes at once, tokens of one, how many make up a row, and programs that take all."""
    together = max(1, numbers * 4 // (lanes * max(4, span)))
    length = LONGEST_STRETCH
    while length > SHORTEST_STRETCH and batch * -(-tokens // length) < SHARES * together:
        length //= 2
    length = max(1, min(length, tokens))
    stretches = -(-tokens // length)
    return together, length, stretches, -(-batch * stretches // together)


@torch.library.custom_op("muse_kernels::short_convolution", mutates_args=())
def _forward(
    x: Tensor, taps: Tensor, initial: Tensor | None, document: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    values = channels - 2 * heads * key_width
    query, key = (x.new_empty(batch, tokens, heads * key_width) for _ in range(2))
    value = x.new_empty(batch, tokens, values)
    lanes, (numbers, warps) = _lanes(key_width), FORWARD
    together, length, stretches, blocks = _stretches(batch, tokens, lanes, len(taps), numbers)
    if x.numel():
        x = unit_last_stride(x)
        initial = None if initial is None else initial.contiguous()
        with torch.cuda.device_of(x):
            short_convolution_kernel[_groups(heads, values, lanes), min(blocks, MOST_OF_AN_AXIS)](
                x, *x.stride()[:2], taps.contiguous(), initial, document, query, key, value, tokens, batch, stretches,
                length, heads, values, SHORTEST, INITIAL=initial is not None, RESETS=document is not None,
                S=len(taps), K=key_width, T=together, G=lanes, num_warps=warps,
            )  # fmt: skip
    return query, key, value


@_forward.register_fake
def _(x, taps, initial, document, heads, key_width):
    batch, tokens, channels = x.shape
    width = heads * key_width
    return (*(x.new_empty(batch, tokens, width) for _ in range(2)), x.new_empty(batch, tokens, channels - 2 * width))


@torch.library.custom_op("muse_kernels::short_convolution_backward", mutates_args=())
def _backward(
    to_query: Tensor, to_key: Tensor, to_value: Tensor, x: Tensor, taps: Tensor, initial: Tensor | None,
    document: Tensor | None, heads: int, key_width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, tokens, channels = x.shape
    span, values = len(taps), channels - 2 * heads * key_width
    dx = x.new_empty(x.shape)
    dinitial = x.new_empty(0) if initial is None else initial.new_empty(initial.shape)
    lanes, (numbers, warps) = _lanes(key_width), BACKWARD
    together, length, stretches, blocks = _stretches(batch, tokens, lanes, span, numbers)
    programs = min(SHARES, blocks)
    shares = x.new_empty((programs, span, channels), dtype=torch.float32)
    if x.numel():
        given, taps = unit_last_stride(x), taps.contiguous()
        initial = None if initial is None else initial.contiguous()
        gradients = [unit_last_stride(g) for g in (to_query, to_key, to_value)]
        steps = [item for g in gradients for item in (g, *g.stride()[:2])]
        with torch.cuda.device_of(x):
            short_convolution_backward_kernel[_groups(heads, values, lanes), programs](
                given, *given.stride()[:2], taps, initial, document, *steps, dx, dinitial, shares, tokens, batch,
                stretches, length, heads, values, SHORTEST, INITIAL=initial is not None, RESETS=document is not None,
                S=span, K=key_width, T=together, G=lanes, num_warps=warps,
            )  # fmt: skip
    return dx, shares.sum(0).to(taps.dtype), dinitial


@_backward.register_fake
def _(to_query, to_key, to_value, x, taps, initial, document, heads, key_width):
    dinitial = x.new_empty(0) if initial is None else initial.new_empty(initial.shape)
    return x.new_empty(x.shape), taps.new_empty(taps.shape), dinitial


def _save(ctx, inputs, output):
    *tensors, ctx.heads, ctx.key_width = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, *gradients):
    x, taps, initial, document = ctx.saved_tensors
    if differentiated_again(x, taps, initial, *gradients):

        def by_torch(x, taps, initial):
            parts = of_documents(x.float(), taps, initial, document, ctx.heads, ctx.key_width)
            return tuple(part.flatten(2).to(x.dtype) for part in parts)

        return *gradients_by_torch(by_torch, (x, taps, initial), gradients), None, None, None
    dx, dtaps, dinitial = _backward(*gradients, x, taps, initial, document, ctx.heads, ctx.key_width)
    return dx, dtaps, None if initial is None else dinitial, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
