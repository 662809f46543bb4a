"""The short convolution token by token: x is read once forward and once backward, nothing else is kept."""

import torch
from torch import Tensor

from ..arguments import SHORTEST, documents
from ..double_backward import differentiated_again, gradients_by_torch
from ..signatures import convolution_of
from ..torch.short_convolution import of_documents
from .calls import call

KINDS = "nnnnnid" + "p" * 10


@convolution_of
def short_convolution(
    x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `muse_kernels.short_convolution` on a CPU; bfloat16 is computed in float32. Second derivatives recompute by
    torch operations."""
    parts = _forward(x, taps, initial, documents(resets), heads, key_width)
    return tuple(part.unflatten(-1, (heads, -1)) for part in parts)


def _computed(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


def _made(x: Tensor, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    lead = x.shape[:2]
    return (*(x.new_empty(*lead, keys) for _ in range(2)), x.new_empty(*lead, x.shape[2] - 2 * keys))


@torch.library.custom_op("muse_kernels::native_short_convolution", mutates_args=(), device_types="cpu")
def _forward(
    x: Tensor, taps: Tensor, initial: Tensor | None, document: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    found = _made(x, heads * key_width)
    _call("short_convolution_forward", x, taps, initial, document, heads, key_width, (*found, None, None, None))
    return found


@_forward.register_fake
def _(x, taps, initial, document, heads, key_width):
    return _made(x, heads * key_width)


@torch.library.custom_op("muse_kernels::native_short_convolution_backward", mutates_args=(), device_types="cpu")
def _backward(
    to_query: Tensor, to_key: Tensor, to_value: Tensor, x: Tensor, taps: Tensor, initial: Tensor | None,
    document: Tensor | None, heads: int, key_width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    computed = _computed(x)
    to_x = x.new_empty(x.shape)
    shares = x.new_empty((len(x), *taps.shape), dtype=computed)
    to_initial = x.new_empty((len(x), len(taps) - 1, x.shape[2]) if initial is not None else (0,), dtype=computed)
    incoming = [part.contiguous() for part in (to_query, to_key, to_value)]
    found = (to_x, shares, to_initial if initial is not None else None)
    _call("short_convolution_backward", x, taps, initial, document, heads, key_width, (*incoming, *found))
    return to_x, shares.sum(0).to(taps.dtype), to_initial if initial is None else to_initial.to(initial.dtype)


@_backward.register_fake
def _(to_query, to_key, to_value, x, taps, initial, document, heads, key_width):
    to_initial = x.new_empty(0) if initial is None else initial.new_empty(initial.shape)
    return x.new_empty(x.shape), taps.new_empty(taps.shape), to_initial


def _call(function, x, taps, initial, document, heads, key_width, pointers) -> None:
    rows, tokens, channels = x.shape
    computed = _computed(x)
    arguments = {
        "N": tokens, "C": channels, "S": len(taps), "heads": heads, "width": key_width,
        "half": x.dtype == torch.bfloat16, "shortest": SHORTEST, "x": x.contiguous(),
        "taps": taps.to(computed).contiguous(),
        "initial": None if initial is None else initial.to(computed).contiguous(),
        "document": None if document is None else document.contiguous(),
    } | {f"p{number}": one for number, one in enumerate(pointers)}  # fmt: skip
    call(function, KINDS, arguments, rows, computed)


def _save(ctx, inputs, output):
    *tensors, ctx.heads, ctx.key_width = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, *gradients):
    x, taps, initial, document = ctx.saved_tensors
    if differentiated_again(x, taps, initial, *gradients):
        computed = _computed(x)

        def by_torch(x, taps, initial):
            parts = of_documents(x.to(computed), taps, initial, document, ctx.heads, ctx.key_width)
            return tuple(part.flatten(2).to(x.dtype) for part in parts)

        return *gradients_by_torch(by_torch, (x, taps, initial), gradients), None, None, None
    to_x, to_taps, to_initial = _backward(*gradients, x, taps, initial, document, ctx.heads, ctx.key_width)
    return to_x, to_taps, None if initial is None else to_initial, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
