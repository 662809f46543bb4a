"""Shares of a chunk's tokens in one pass over the gates, forwards and backwards."""

import torch
from torch import Tensor

from ...torch.deep_memory import Piece, Shares, shares_of_tokens
from .shares_kernel import shares_back_kernel, shares_kernel

ENTRIES = 1024
"""Of a tile at least."""


def shares(piece: Piece, alive: Tensor | None, orthogonalise: bool) -> Shares:
    """As `muse_kernels.torch.deep_memory.shares_of_tokens`, of whole chunks (B, H, n, C)."""
    if orthogonalise or piece.log_momentum is None:
        return shares_of_tokens(piece, alive, orthogonalise)
    if alive is not None:
        alive = alive[:, 0].to(torch.int8).contiguous()
    found = _shares(piece.log_momentum.float(), piece.log_decay.float(), alive)
    of_gradients, momentum, earlier, kept = found
    return Shares(of_gradients, momentum, earlier, kept, None)


@torch.library.custom_op("muse_kernels::deep_memory_shares", mutates_args=())
def _shares(log_momentum: Tensor, log_decay: Tensor, alive: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, number, chunk = log_decay.shape
    found = log_decay.new_empty(batch, heads, number, 2, chunk)
    momentum, earlier, kept = (log_decay.new_empty(batch, heads, number) for _ in range(3))
    if found.numel():
        grid, sizes = _launch(log_decay)
        with torch.cuda.device_of(log_decay):
            shares_kernel[grid](
                *(log_momentum, log_decay, alive, found, momentum, earlier, kept, kept.numel(), heads, number),
                *(*log_momentum.stride(), *log_decay.stride()),
                ALIVE=alive is not None,
                **sizes,
            )
    return found, momentum, earlier, kept


@_shares.register_fake
def _(log_momentum, log_decay, alive):
    batch, heads, number, chunk = log_decay.shape
    each = (log_decay.new_empty(batch, heads, number) for _ in range(3))
    return log_decay.new_empty(batch, heads, number, 2, chunk), *each


@torch.library.custom_op("muse_kernels::deep_memory_shares_backward", mutates_args=())
def _backward(
    to_shares: Tensor,
    to_momentum: Tensor,
    to_earlier: Tensor,
    to_kept: Tensor,
    log_momentum: Tensor,
    log_decay: Tensor,
    alive: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Adjoints of the gates, (B, n, C, H) as layers lay them out."""
    batch, heads, number, chunk = log_decay.shape
    to_gates = tuple(log_decay.new_empty(batch, number, chunk, heads) for _ in range(2))
    if log_decay.numel():
        grid, sizes = _launch(log_decay)
        given = (x.contiguous() for x in (to_shares, to_momentum, to_earlier, to_kept))
        with torch.cuda.device_of(log_decay):
            shares_back_kernel[grid](
                *(log_momentum, log_decay, alive, *given, *to_gates, to_kept.numel(), heads, number),
                *(*log_momentum.stride(), *log_decay.stride()),
                ALIVE=alive is not None,
                **sizes,
            )
    return to_gates


@_backward.register_fake
def _(to_shares, to_momentum, to_earlier, to_kept, log_momentum, log_decay, alive):
    batch, heads, number, chunk = log_decay.shape
    return tuple(log_decay.new_empty(batch, number, chunk, heads) for _ in range(2))


def _gradients(ctx, *adjoints):
    to_gates = _backward(*adjoints, *ctx.saved_tensors)
    return *(x.permute(0, 3, 1, 2) for x in to_gates), None


_shares.register_autograd(_gradients, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def _launch(log_decay: Tensor) -> tuple[tuple[int], dict]:
    """(grid, options): chunks (B, H, n) side by side in tiles of (R, T)."""
    chunk, width = log_decay.shape[-1], 16
    while width < chunk:
        width *= 2
    rows = max(1, ENTRIES // width)
    programs = -(-(log_decay.numel() // chunk) // rows)
    return (programs,), {"C": chunk, "T": width, "R": rows, "num_warps": 4, "num_stages": 1}
