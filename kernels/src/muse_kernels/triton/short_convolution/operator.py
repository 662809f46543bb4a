"""Short convolutions by Triton kernels: x is read once forward and once backward, nothing else is kept."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...arguments import SHORTEST, documents
from ...double_backward import differentiated_again, gradients_by_torch
from ...signatures import causal_of, convolution_of
from ...torch.short_convolution import of_documents, sum_of_documents
from ..memory import unit_last_stride
from .kernels import short_convolution_backward_kernel, short_convolution_kernel

WIDEST, LONGEST = 128, 16
"""Key channels of a head, and tokens of the convolution, that a program holds."""


class Launch(NamedTuple):
    """How tokens and channels are laid over programs."""

    numbers: int
    """Channels of a token of each of its stretches, in a program, for convolutions of up to four tokens."""
    warps: int
    turn: int
    """Tokens of a stretch that are loaded before the first is used."""
    longest: int
    """Tokens of a stretch at most."""
    programs: int
    """That share the tokens of a channel group, as far as its stretches are not made shorter than 16 tokens for it.
    Backward each has a share of the taps' gradient."""
    registers: int | None
    """Of a thread at most; None leaves it to the compiler."""


FORWARD, BACKWARD = Launch(512, 4, 4, 32, 64, None), Launch(256, 2, 4, 64, 128, 128)
"""The fastest of those that were timed on an H200, or as fast (docs/results/peers-on-a-gpu.md). Backward the compiler
by itself takes so many registers that a processor holds few programs; within 128 some are spilled, hardly any in the
loop."""
LANES = 64
"""Channels of a program's tokens of `causal_convolution`."""


@convolution_of
def short_convolution(
    x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `muse_kernels.short_convolution`, in float32 or bfloat16, products in float32. Second
    derivatives recompute by torch operations."""
    _refuse("short_convolution", x, taps, key_width)
    query, key, value = _forward(x, taps, initial, resets, heads, key_width)
    return tuple(part.unflatten(-1, (heads, -1)) for part in (query, key, value))


@causal_of
def causal_convolution(x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None) -> Tensor:
    """As `muse_kernels.causal_convolution`, in float32 or bfloat16, products in float32. Second derivatives recompute
    by torch operations."""
    _refuse("causal_convolution", x, taps)
    return _forward(x, taps, initial, resets, 0, LANES)[2]


def _refuse(operation: str, x: Tensor, taps: Tensor, key_width: int | None = None) -> None:
    if x.dtype == torch.float64:
        raise ValueError(f"{operation}: the triton kernels compute in float32; use backend torch for float64")
    if len(taps) > LONGEST or (key_width or 0) > WIDEST:
        heads, key = ("", "") if key_width is None else (f"heads up to {WIDEST} wide and ", f"K={key_width}, ")
        raise ValueError(
            f"{operation}: the triton kernels hold {heads}{LONGEST} tokens, got {key}S={len(taps)}; use backend torch"
        )


class _Layout(NamedTuple):
    """How a launch lies over rows and channels, in the order of the kernels' arguments."""

    stretches: int
    """Of a row."""
    length: int
    """Tokens of one."""
    groups: int
    """Heads."""
    parts: int
    """Channel groups."""


def _laid(launch: Launch, batch: int, tokens: int, values: int, span: int, heads: int, key_width: int):
    """The layout, the sizes that kernels are compiled for, and the blocks of stretches of a channel group."""
    lanes = 16
    while lanes < key_width:
        lanes *= 2
    together = launch.numbers // lanes
    while together > 1 and together * lanes * span > launch.numbers * 4:
        together //= 2
    together = max(1, together)
    length = launch.longest
    while length > 16 and batch * -(-tokens // length) < launch.programs * together:
        length //= 2
    length = min(length, -(-tokens // launch.turn) * launch.turn)
    stretches = -(-tokens // length)
    layout = _Layout(stretches, length, heads, 2 * heads + -(-values // lanes))
    sizes = {"S": span, "K": key_width, "T": together, "G": lanes, "U": launch.turn, "ACTIVE": heads > 0}
    more = {"num_warps": launch.warps} | ({"maxnreg": launch.registers} if launch.registers else {})
    return layout, sizes | more, -(-batch * stretches // together)


@torch.library.custom_op("muse_kernels::short_convolution", mutates_args=())
def _forward(
    x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    values = channels - 2 * heads * key_width
    query, key = (x.new_empty(batch, tokens, heads * key_width) for _ in range(2))
    value = x.new_empty(batch, tokens, values)
    if x.numel():
        layout, sizes, blocks = _laid(FORWARD, batch, tokens, values, len(taps), heads, key_width)
        x = unit_last_stride(x)
        initial, resets = (None if one is None else one.contiguous() for one in (initial, resets))
        with torch.cuda.device_of(x):
            short_convolution_kernel[(layout.parts * blocks,)](
                x, *x.stride()[:2], taps.contiguous(), initial, resets, query if heads else value,
                key if heads else value, value, tokens, batch, *layout, values, SHORTEST, INITIAL=initial is not None,
                RESETS=resets is not None, **sizes,
            )  # fmt: skip
    return query, key, value


@_forward.register_fake
def _(x, taps, initial, resets, heads, key_width):
    batch, tokens, channels = x.shape
    width = heads * key_width
    return (*(x.new_empty(batch, tokens, width) for _ in range(2)), x.new_empty(batch, tokens, channels - 2 * width))


@torch.library.custom_op("muse_kernels::short_convolution_backward", mutates_args=())
def _backward(
    to_query: Tensor, to_key: Tensor, to_value: Tensor, x: Tensor, taps: Tensor, initial: Tensor | None,
    resets: Tensor | None, heads: int, key_width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, tokens, channels = x.shape
    span, values = len(taps), channels - 2 * heads * key_width
    dx = x.new_empty(x.shape)
    dinitial = x.new_empty(0) if initial is None else initial.new_empty(initial.shape)
    shares, programs = x.new_empty((BACKWARD.programs, span, channels), dtype=torch.float32), 0
    if x.numel():
        layout, sizes, blocks = _laid(BACKWARD, batch, tokens, values, span, heads, key_width)
        programs = min(blocks, BACKWARD.programs)
        given, taps = unit_last_stride(x), taps.contiguous()
        initial, resets = (None if one is None else one.contiguous() for one in (initial, resets))
        gradients = [unit_last_stride(g) for g in ((to_query, to_key, to_value) if heads else (to_value,) * 3)]
        steps = [item for g in gradients for item in (g, *g.stride()[:2])]
        with torch.cuda.device_of(x):
            short_convolution_backward_kernel[(layout.parts * programs,)](
                given, *given.stride()[:2], taps, initial, resets, *steps, dx, dinitial, shares, tokens, batch,
                *layout, programs, values, SHORTEST, INITIAL=initial is not None, RESETS=resets is not None, **sizes,
            )  # fmt: skip
    shares[programs:].zero_()  # of programs that few tokens leave nothing to do
    return dx, shares, dinitial


@_backward.register_fake
def _(to_query, to_key, to_value, x, taps, initial, resets, heads, key_width):
    dinitial = x.new_empty(0) if initial is None else initial.new_empty(initial.shape)
    return x.new_empty(x.shape), x.new_empty((BACKWARD.programs, *taps.shape), dtype=torch.float32), dinitial


def _save(ctx, inputs, output):
    *tensors, ctx.heads, ctx.key_width = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, *gradients):
    x, taps, initial, resets = ctx.saved_tensors
    if differentiated_again(x, taps, initial, *gradients):
        gradients = gradients if ctx.heads else gradients[2:]

        def by_torch(x, taps, initial):
            if not ctx.heads:
                return sum_of_documents(x.float(), taps, initial, documents(resets)).to(x.dtype)
            parts = of_documents(x.float(), taps, initial, documents(resets), ctx.heads, ctx.key_width)
            return tuple(part.flatten(2).to(x.dtype) for part in parts)

        return *gradients_by_torch(by_torch, (x, taps, initial), gradients), None, None, None
    dx, shares, dinitial = _backward(*gradients, x, taps, initial, resets, ctx.heads, ctx.key_width)
    # Added up here, where a compiler sees it, in one order.
    return dx, shares.sum(0).to(taps.dtype), None if initial is None else dinitial, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
