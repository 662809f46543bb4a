"""Deep memory with the scan over whole chunks and their readings as Triton kernels; a chunk's beginning and a rest are
the torch form's."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...deep_memory_arguments import DeepMemoryCall, DeepMemoryLayout, DeepMemoryState, checked
from ...refusals import deep_memory_sizes
from ...torch.deep_memory import Chunks, WholeChunks, by_chunks
from ..memory import unit_last_stride
from .backward_kernel import scan_back_kernel
from .forward_kernel import scan_kernel
from .reading import read
from .shares import shares
from .tokens_kernel import tokens_back_kernel, trials_kernel


class Launch(NamedTuple):
    """Tokens of a tile at most, and warps of a program."""

    tokens: int
    warps: int


FORWARD, BACKWARD, TOKENS = Launch(32, 8), Launch(16, 8), Launch(16, 4)
"""Of both scans, and of what goes over all chunks at once."""


@checked
def deep_memory(call: DeepMemoryCall, layout: DeepMemoryLayout) -> tuple[Tensor, DeepMemoryState]:
    """As `muse_kernels.deep_memory`, of gated memories in float32 or bfloat16. In bfloat16 the weights at the chunks'
    starts, from which is read and differentiated, are rounded; W and S themselves are float32. First derivatives
    only."""
    if layout.state_dtype == torch.float64:
        raise ValueError("deep_memory: the triton kernels compute in float32; use backend torch for float64")
    reason = deep_memory_sizes({"key": layout.key_width, "hidden": layout.hidden, "matrices": layout.matrices})
    if reason:
        raise ValueError(f"deep_memory: {reason}; use backend torch")
    return by_chunks(call, layout, WholeChunks(shares, scan, read), layout.output_dtype)


def scan(
    chunks: Chunks, learned: Tensor, weights: Tensor, momentum: Tensor, orthogonalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `muse_kernels.torch.deep_memory.scan`, the starts in the keys' dtype."""
    zeros = torch.zeros_like(chunks.kept)
    of_states = [zeros if x is None else x for x in (chunks.momentum, chunks.kept, chunks.subtracted)]
    inputs = (chunks.key, chunks.value, chunks.factors, torch.stack(of_states, -1), learned, weights, momentum)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return _forward(*inputs, chunks.fresh, chunks.chunk, orthogonalise, keep)[:3]


@torch.library.custom_op("muse_kernels::deep_memory_scan", mutates_args=())
def _forward(
    key: Tensor,
    value: Tensor,
    factors: Tensor,
    shares: Tensor,
    learned: Tensor,
    weights: Tensor,
    momentum: Tensor,
    fresh: Tensor | None,
    chunk: int,
    orthogonalise: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    key, value, factors, shares, fresh, learned = _given(key, value, factors, shares, fresh, learned)
    batch, heads, number, _, size = factors.shape
    starts = key.new_empty(number, *weights.shape)
    momenta = _kept(key, weights, number, orthogonalise, keep)
    weights, momentum = (x.clone(memory_format=torch.contiguous_format) for x in (weights, momentum))
    current = key.new_empty(0) if fresh is None else weights.to(key.dtype, copy=True)
    if starts.numel():
        starts[0] = weights
        with torch.cuda.device_of(key):
            scan_kernel[(batch * heads,)](
                *(key, value, factors, shares, fresh, learned, weights, momentum, starts, momenta, current),
                *(heads, number, *key.stride()[:3], *value.stride()[:3]),
                **_sizes(chunk, size, learned, FORWARD),
                ORTHOGONALISE=orthogonalise,
                FRESH=fresh is not None,
                KEEP=keep,
            )
    return starts, weights, momentum, momenta


def _kept(key: Tensor, weights: Tensor, number: int, orthogonalise: bool, keep: bool) -> Tensor:
    """Room for S after every chunk: of Newton-Schulz in float32, for it multiplies an error by up to 3.4445 ** 5."""
    shape = (number, *weights.shape) if keep else (0,)
    return (weights if orthogonalise else key).new_empty(shape)


@_forward.register_fake
def _(key, value, factors, shares, learned, weights, momentum, fresh, chunk, orthogonalise, keep):
    starts = key.new_empty(factors.shape[2], *weights.shape)
    momenta = _kept(key, weights, factors.shape[2], orthogonalise, keep)
    return starts, weights.new_empty(weights.shape), momentum.new_empty(momentum.shape), momenta


@torch.library.custom_op("muse_kernels::deep_memory_scan_backward", mutates_args=())
def _backward(
    to_starts: Tensor,
    to_weights: Tensor,
    to_momentum: Tensor,
    key: Tensor,
    value: Tensor,
    factors: Tensor,
    shares: Tensor,
    learned: Tensor,
    first_momentum: Tensor,
    fresh: Tensor | None,
    starts: Tensor,
    momenta: Tensor,
    chunk: int,
    orthogonalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Adjoints of the first seven inputs of `_forward`; of keys and values (B, N, H, K), as layers lay them out."""
    key, value, factors, shares, fresh, learned = _given(key, value, factors, shares, fresh, learned)
    batch, heads, number, _, size = factors.shape
    rows, (key_width, hidden) = batch * heads, learned.shape[2:]
    used, to_learned = starts, to_weights.new_empty(0)
    if fresh is not None:
        used = torch.where(fresh.bool().t()[:, :, None, None, None, None], learned.to(starts.dtype), starts)
        to_learned = torch.zeros_like(to_weights, memory_format=torch.contiguous_format)
    to_weights, to_momentum = (x.clone(memory_format=torch.contiguous_format) for x in (to_weights, to_momentum))
    # Newton-Schulz multiplies the errors of what goes into it.
    exact = to_weights.dtype if orthogonalise else key.dtype
    layers = key.new_empty((number, rows, 4, size, hidden), dtype=exact)
    errors = key.new_empty((number, rows, size, key_width), dtype=exact)
    leading, trailing = torch.empty_like(starts, dtype=exact), torch.empty_like(starts)
    steps = to_weights.new_empty((rows, 5, key_width * (hidden + 2 * key_width)) if orthogonalise else 0)
    shape, summed = (batch, number, size, heads, key_width), torch.float32 if size > chunk else key.dtype
    to_key, to_value = (key.new_empty(shape, dtype=summed) for _ in range(2))
    to_factors, to_shares = torch.empty_like(factors), torch.empty_like(shares)
    if starts.numel():
        strides, of_values = key.stride()[:3], value.stride()[:3]
        flags = {"ORTHOGONALISE": orthogonalise, "FRESH": fresh is not None}
        with torch.cuda.device_of(key):
            trials_kernel[(number * rows,)](
                *(key, value, used, layers, errors, rows, heads, *strides, *of_values),
                **_sizes(chunk, size, learned, TOKENS),
            )
            scan_back_kernel[(rows,)](
                *(key, factors, shares, fresh, used, momenta, to_starts.contiguous(), to_weights, to_momentum),
                *(to_learned, leading, trailing, steps, layers, errors, to_value, to_shares, heads, number, *strides),
                **_sizes(chunk, size, learned, BACKWARD),
                **flags,
            )
            tokens_back_kernel[(number * rows,)](
                *(key, factors, fresh, used, momenta, first_momentum.contiguous(), leading, trailing, layers, errors),
                *(to_key, to_value, to_factors, to_shares, rows, heads, number, *strides),
                **_sizes(chunk, size, learned, TOKENS),
                **flags,
            )
    to_key, to_value = (_tokens_of_chunks(x, chunk).to(key.dtype) for x in (to_key, to_value))
    to_learned = torch.empty_like(learned) if fresh is None else to_learned.sum(0)
    return to_key, to_value, to_factors, to_shares, to_learned, to_weights, to_momentum


def _tokens_of_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, X - C + n C, ...) of (B, n, X, ...), tokens that several chunks have summed."""
    size, further = x.shape[2], -(-x.shape[2] // chunk) - 1
    if not further:
        return x.flatten(1, 2)
    found = F.pad(x[:, :, :chunk].flatten(1, 2), (0, 0, 0, 0, 0, further * chunk))
    for shift in range(chunk, size, chunk):
        more = x[:, :, shift : shift + chunk]
        later = found[:, shift : shift + x.shape[1] * chunk].unflatten(1, (-1, chunk))
        later[:, :, : more.shape[2]] += more
    return found[:, : found.shape[1] - further * chunk + size - chunk].contiguous()


@_backward.register_fake
def _(to_starts, to_weights, to_momentum, key, value, factors, shares, learned, first_momentum, *_):
    given = (key.transpose(1, 2), value.transpose(1, 2), factors, shares, learned, first_momentum, first_momentum)
    return tuple(x.new_empty(x.shape) for x in given)


def _given(key, value, factors, shares, fresh, learned):
    """As the kernels read them."""
    fresh = None if fresh is None else fresh.to(torch.int32).contiguous()
    key, value = unit_last_stride(key), unit_last_stride(value)
    return key, value, factors.contiguous(), shares.contiguous(), fresh, learned.contiguous()


def _save(ctx, inputs, output):
    ctx.set_materialize_grads(False)  # of the momenta, as large as the starts, nobody has an adjoint
    *tensors, ctx.chunk, ctx.orthogonalise, _ = inputs
    starts, _, _, momenta = output
    ctx.save_for_backward(*tensors, starts, momenta)


def _gradients(ctx, to_starts, to_weights, to_momentum, _):
    *inputs, fresh, starts, momenta = ctx.saved_tensors
    key, value, factors, shares, learned, _, momentum = inputs
    state = momentum.shape
    to_starts = starts.new_zeros(starts.shape) if to_starts is None else to_starts
    gradients = (to_starts, *(momentum.new_zeros(state) if x is None else x for x in (to_weights, to_momentum)))
    tensors = (key, value, factors, shares, learned, momentum, fresh, starts, momenta)
    found = list(_backward(*gradients, *tensors, ctx.chunk, ctx.orthogonalise))
    found[:2] = (x.transpose(1, 2) for x in found[:2])
    if fresh is None:
        found[4] = None  # no chunk starts from the learned weights but by `weights`
    return *found, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _sizes(chunk: int, size: int, learned: Tensor, launch: Launch) -> dict:
    tokens = 16
    while tokens < min(size, launch.tokens):
        tokens *= 2
    return {
        "C": chunk,
        "X": size,
        "K": learned.shape[2],
        "E": learned.shape[3],
        "T": tokens,
        "num_warps": launch.warps,
        "num_stages": 1,
    }
