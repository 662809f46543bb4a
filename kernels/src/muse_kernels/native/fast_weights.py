"""Fast weights by the recurrence itself: the columns of a head's weights side by side in the processor's vectors.

Nothing of size tokens x tokens is made; a backward pass runs `EVERY` tokens at a time again.
"""

import torch
from torch import Tensor

from ..arguments import Call, Layout, checked
from ..double_backward import differentiated_again, gradients_by_torch
from ..torch.fast_weights import fast_weights as by_torch
from .calls import call as native_call

EVERY = 32
"""Tokens between weights that are kept for the backward pass: their weights, 32 x 48 x 48 floats, fit the second
cache."""
KINDS = "nnnnnii" + "p" * 18


@checked
def fast_weights(call: Call, layout: Layout) -> tuple[Tensor, Tensor]:
    """Token by token on a CPU; arguments, results and errors as `muse_kernels.fast_weights`. `chunk` has no effect.

    Cost O(N K M), memory O(N (K + M) + N/32 K M). Second derivatives recompute by torch operations.
    """
    query, key, value, log_decay, rate, rule, initial, resets, read, _ = call
    numbers = [x.to(layout.state_dtype) for x in (query, key, value, log_decay, rate)]
    initial = None if initial is None else initial.to(layout.state_dtype)
    output, final, _ = _forward(*numbers, initial, resets, rule, read, EVERY)
    return output.to(layout.output_dtype), final


@torch.library.custom_op("muse_kernels::native_fast_weights", mutates_args=(), device_types="cpu")
def _forward(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, rate: Tensor, initial: Tensor | None,
    resets: Tensor | None, rule: str, read: str, every: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    output, final, kept = _made(query, value, every)
    inputs = [_whole(x) for x in (query, key, value, log_decay, rate, initial, resets)]
    _call("fast_weights_forward", inputs, rule, read, every, (output, final, kept), ())
    return output, final, kept


def _made(query: Tensor, value: Tensor, every: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, key_width = query.shape
    size = (key_width, value.shape[-1])
    return (
        value.new_empty(value.shape),
        value.new_empty(batch, heads, *size),
        value.new_empty(batch, heads, -(-tokens // every), *size),
    )


@_forward.register_fake
def _(query, key, value, log_decay, rate, initial, resets, rule, read, every):
    return _made(query, value, every)


@torch.library.custom_op("muse_kernels::native_fast_weights_backward", mutates_args=(), device_types="cpu")
def _backward(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, rate: Tensor, resets: Tensor | None, kept: Tensor,
    to_output: Tensor, to_final: Tensor | None, rule: str, read: str, every: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = [_whole(x) for x in (query, key, value, log_decay, rate, None, resets)]
    # Strips of value columns add to the gradients of what they share.
    shared = [torch.zeros(x.shape, dtype=x.dtype) for x in (query, key, log_decay, rate)]
    to_value, to_initial = value.new_empty(value.shape), _made(query, value, every)[1]
    to_query, to_key, to_decay, to_rate = shared
    found = (to_query, to_key, to_value, to_decay, to_rate, to_initial)
    incoming = (to_output.contiguous(), _whole(to_final))
    _call("fast_weights_backward", inputs, rule, read, every, (None, None, kept), (*incoming, *found))
    return found


@_backward.register_fake
def _(query, key, value, log_decay, rate, resets, kept, to_output, to_final, rule, read, every):
    leaves = tuple(x.new_empty(x.shape) for x in (query, key, value, log_decay, rate))
    return *leaves, _made(query, value, every)[1]


def _whole(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _call(function, inputs, rule, read, every, outputs, gradients) -> None:
    query, key, value, log_decay, rate, initial, resets = inputs
    batch, tokens, heads, key_width = query.shape
    names = ("output", "final", "kept", "to_output", "to_final", "query", "key", "value", "decay", "rate", "initial")
    values = (*outputs, *gradients, *[None] * 8)[:11]
    arguments = {
        "N": tokens, "H": heads, "K": key_width, "M": value.shape[-1], "every": every, "delta": rule == "delta",
        "before": read == "before", "q": query, "k": key, "v": value, "g": log_decay, "b": rate, "i": initial,
        "resets": resets,
    } | {f"to {name}": one for name, one in zip(names, values, strict=True)}  # fmt: skip
    native_call(function, KINDS, arguments, batch * heads, value.dtype)


def _save(ctx, inputs, output):
    *tensors, ctx.rule, ctx.read, ctx.every = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx, to_output, to_final, _):
    *leaves, initial, resets, kept = ctx.saved_tensors
    value = leaves[2]
    if to_output is None:
        to_output = value.new_zeros(value.shape)
    if differentiated_again(*leaves, initial, to_output, to_final):
        incoming = (to_output, to_final if to_final is not None else torch.zeros_like(kept[:, :, 0]))

        def function(query, key, value, log_decay, rate, initial):
            return by_torch(
                query, key, value, log_decay, rate, rule=ctx.rule, read=ctx.read, initial=initial, resets=resets
            )

        found = gradients_by_torch(function, (*leaves, initial), incoming)
    else:
        found = list(_backward(*leaves, resets, kept, to_output, to_final, ctx.rule, ctx.read, ctx.every))
    *of_leaves, of_initial = found
    return *of_leaves, None if initial is None else of_initial, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
