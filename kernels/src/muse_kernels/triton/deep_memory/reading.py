"""Readings of the whole chunks, forwards and backwards, in one pass over the states each."""

import torch
from torch import Tensor

from ..memory import unit_last_stride
from .reading_kernel import read_back_kernel, read_kernel

TOKENS, WARPS = 32, 8
"""Tokens of a tile at most, and warps of a program."""


def read(starts: Tensor, query: Tensor) -> Tensor:
    """As `muse_kernels.torch.deep_memory.read`, of starts and queries of one dtype."""
    return _read(starts, query).transpose(1, 2)


@torch.library.custom_op("muse_kernels::deep_memory_read", mutates_args=())
def _read(starts: Tensor, query: Tensor) -> Tensor:
    """(B, N, H, K)."""
    starts, query = starts.contiguous(), unit_last_stride(query)
    batch, heads, tokens, width = query.shape
    output = query.new_empty(batch, tokens, heads, width)
    if output.numel():
        with torch.cuda.device_of(query):
            read_kernel[(starts.shape[0] * batch * heads,)](
                *(starts, query, output, batch * heads, heads, tokens, *query.stride()[:3]), **_sizes(starts, tokens)
            )
    return output


@_read.register_fake
def _(starts, query):
    batch, heads, tokens, width = query.shape
    return query.new_empty(batch, tokens, heads, width)


@torch.library.custom_op("muse_kernels::deep_memory_read_backward", mutates_args=())
def _read_backward(to_output: Tensor, starts: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Adjoints of the starts and, (B, N, H, K), of the queries."""
    starts, query, to_output = starts.contiguous(), unit_last_stride(query), unit_last_stride(to_output)
    batch, heads, tokens, width = query.shape
    to_starts, to_query = torch.empty_like(starts), query.new_empty(batch, tokens, heads, width)
    if to_query.numel():
        with torch.cuda.device_of(query):
            read_back_kernel[(starts.shape[0] * batch * heads,)](
                *(starts, query, to_output, to_starts, to_query, batch * heads, heads, tokens),
                *(*query.stride()[:3], *to_output.stride()[:3]),
                **_sizes(starts, tokens),
            )
    return to_starts, to_query


@_read_backward.register_fake
def _(to_output, starts, query):
    batch, heads, tokens, width = query.shape
    return torch.empty_like(starts), query.new_empty(batch, tokens, heads, width)


def _gradients(ctx, to_output):
    to_starts, to_query = _read_backward(to_output, *ctx.saved_tensors)
    return to_starts, to_query.transpose(1, 2)


_read.register_autograd(_gradients, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def _sizes(starts: Tensor, tokens: int) -> dict:
    chunk = tokens // starts.shape[0]
    tile = 16
    while tile < min(chunk, TOKENS):
        tile *= 2
    return {
        "C": chunk,
        "K": starts.shape[-2],
        "E": starts.shape[-1],
        "T": tile,
        "num_warps": WARPS,
        "num_stages": 1,
    }
