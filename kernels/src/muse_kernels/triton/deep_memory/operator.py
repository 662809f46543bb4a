"""Deep memory with the scan over whole chunks as Triton kernels; the readings, a chunk's beginning and a rest are the
torch form's."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...deep_memory_arguments import DeepMemoryCall, DeepMemoryLayout, DeepMemoryState, checked
from ...refusals import deep_memory_sizes
from ...torch.deep_memory import Chunks, by_chunks
from .backward_kernel import scan_back_kernel
from .forward_kernel import scan_kernel


class Launch(NamedTuple):
    """Tokens of a tile at most, and warps of a program."""

    tokens: int
    warps: int


FORWARD, BACKWARD = Launch(32, 8), Launch(32, 8)


@checked
def deep_memory(call: DeepMemoryCall, layout: DeepMemoryLayout) -> tuple[Tensor, DeepMemoryState]:
    """As `muse_kernels.deep_memory`, of gated memories in float32 or bfloat16. In bfloat16 the weights at the chunks'
    starts, from which is read and differentiated, are rounded; W and S themselves are float32."""
    if layout.state_dtype == torch.float64:
        raise ValueError("deep_memory: the triton kernels compute in float32; use backend torch for float64")
    reason = deep_memory_sizes({"key": layout.key_width, "hidden": layout.hidden, "matrices": layout.matrices})
    if reason:
        raise ValueError(f"deep_memory: {reason}; use backend torch")
    return by_chunks(call, layout, scan, layout.output_dtype)


def scan(
    chunks: Chunks, learned: Tensor, weights: Tensor, momentum: Tensor, orthogonalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `muse_kernels.torch.deep_memory.scan`, the starts in the keys' dtype."""
    zeros = torch.zeros_like(chunks.kept)
    shares = [zeros if x is None else x for x in (chunks.momentum, chunks.kept, chunks.subtracted)]
    fresh = None if chunks.fresh is None else chunks.fresh.to(torch.int32).contiguous()
    return _Scan.apply(
        *(chunks.key, chunks.value, chunks.factors, torch.stack(shares, -1), fresh, learned, weights, momentum),
        *(chunks.chunk, orthogonalise),
    )


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, key, value, factors, shares, fresh, learned, weights, momentum, chunk, orthogonalise):
        key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value))
        factors, shares = factors.contiguous(), shares.contiguous()
        batch, heads, number, _, size = factors.shape
        rows, matrix = batch * heads, learned.shape[1:]
        keep = any(ctx.needs_input_grad)
        slots = key.new_empty(number * rows + heads, *matrix)
        slots[number * rows :] = learned
        momenta = key.new_empty(number * rows if keep else 1, *matrix)
        first_momentum = momentum.contiguous()
        weights, momentum = (x.clone(memory_format=torch.contiguous_format) for x in (weights, momentum))
        if rows and number:
            with torch.cuda.device_of(key):
                scan_kernel[(rows,)](
                    *(key, value, factors, shares, fresh, learned.contiguous(), weights, momentum, slots, momenta),
                    *(heads, number, *key.stride()[:3], *value.stride()[:3]),
                    **_sizes(chunk, size, learned, FORWARD, key.dtype),
                    ORTHOGONALISE=orthogonalise,
                    FRESH=fresh is not None,
                    KEEP=keep,
                )
        ctx.save_for_backward(key, value, factors, shares, fresh, learned, first_momentum, slots, momenta)
        ctx.chunk, ctx.orthogonalise = chunk, orthogonalise
        return slots[: number * rows].view(number, batch, heads, *matrix), weights, momentum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, to_starts, to_weights, to_momentum):
        key, value, factors, shares, fresh, learned, first_momentum, slots, momenta = ctx.saved_tensors
        batch, heads, number, _, size = factors.shape
        rows = batch * heads
        both = torch.stack((to_weights, torch.empty_like(to_weights)))
        to_momentum = to_momentum.clone(memory_format=torch.contiguous_format)
        to_learned = torch.zeros_like(both[0]) if fresh is not None else both
        summed = torch.zeros if size > ctx.chunk else torch.empty
        dtype = torch.float32 if size > ctx.chunk else key.dtype
        to_key, to_value = (
            summed(batch, heads, *key.shape[2:], dtype=dtype, device=key.device) for _ in range(2)
        )
        to_factors, to_shares = torch.empty_like(factors), torch.empty_like(shares)
        key_width, hidden = learned.shape[2:]
        steps = key.new_empty(rows, 5, key_width * (hidden + 2 * key_width))
        if rows and number:
            with torch.cuda.device_of(key):
                scan_back_kernel[(rows,)](
                    *(key, value, factors, shares, fresh, slots, momenta, first_momentum, to_starts.contiguous()),
                    *(both, to_momentum, to_learned, steps, to_key, to_value, to_factors, to_shares),
                    *(heads, number, *key.stride()[:3], *value.stride()[:3]),
                    **_sizes(ctx.chunk, size, learned, BACKWARD, key.dtype),
                    ORTHOGONALISE=ctx.orthogonalise,
                    FRESH=fresh is not None,
                )
        of_learned = None if fresh is None else to_learned.sum(0)
        to_key, to_value = to_key.to(key.dtype), to_value.to(value.dtype)
        return (
            *(to_key, to_value, to_factors, to_shares, None, of_learned, both[number % 2], to_momentum),
            *(None, None),
        )


def _sizes(chunk: int, size: int, learned: Tensor, launch: Launch, dtype: torch.dtype) -> dict:
    tokens = 16
    while tokens < min(size, launch.tokens):
        tokens *= 2
    return {
        "C": chunk,
        "X": size,
        "K": learned.shape[2],
        "E": learned.shape[3],
        "T": tokens,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
        "num_warps": launch.warps,
        "num_stages": 1,
    }
