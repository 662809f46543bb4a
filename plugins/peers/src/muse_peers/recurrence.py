"""Linear memories whose channels decay each at its own rate, in chunks.

Letters: B batch, N tokens, H heads, K key width, M value width, n chunks of C tokens.

What a chunk's tokens read of each other, and what decays from and to its ends, is the operation ``decayed_scores`` of
muse-kernels; the rest are matrix products. All chunks are computed at once but for W, which goes from one to the next
by one product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import muse_kernels

CHUNK = 64
"""Tokens of a chunk at most, a power of two."""
AT_ONCE = 2**23
"""Numbers N H K of the rows that are computed together; what is kept for their gradients is tens of times as much."""
KEPT = 2**24
"""Such numbers of all rows up to which a GPU computes nothing twice: with its kernel about 17 times as much is kept."""
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 does not tell


class Writing(NamedTuple):
    """What a token does to W (K, M): W_t = diag(e^{g}) W_{t−1} + b (aᵀ W_{t−1}) + k vᵀ. Each (B, N, H, K), v with M."""

    key: Tensor
    value: Tensor
    log_decay: Tensor
    """g ≤ 0."""
    probe: Tensor | None = None
    """a, what of the memory is taken out; None with ``insert`` for no such term."""
    insert: Tensor | None = None
    """b, where it is put."""


def recurrence(
    query: Tensor,
    writing: Writing,
    initial: Tensor | None,
    resets: Tensor | None,
    valid: Tensor | None,
    scores: Callable[..., Any] = muse_kernels.decayed_scores,
) -> tuple[Tensor, Tensor]:
    """W_tᵀ q_t (B, N, H, M) in the value's dtype, and the last W (B, H, K, M), computed in fp32 at least.

    query (B, N, H, K); ``initial`` (B, H, K, M), None for zeros; ``resets`` (B, N) bool as ``contracts.Tokens.starts``
    gives them, ``valid`` (B, N) bool as in ``contracts.Tokens``: a reset forgets W, a token that is not valid leaves it
    as it is. ``scores`` as ``muse_kernels.decayed_scores``.
    """
    length = query.shape[1]
    given = writing.value.dtype
    dtype = torch.promote_types(torch.promote_types(query.dtype, writing.log_decay.dtype), torch.float32)
    parts = [None if part is None else part.to(dtype) for part in (query, *writing)]
    if valid is not None:
        parts[1:] = [None if part is None else part * valid[..., None, None] for part in parts[1:]]
    chunk = CHUNK if length > CHUNK else 1 << (length - 1).bit_length()
    with torch.autocast(query.device.type, enabled=False):
        read, reach, added, across = _by_rows(parts, resets, chunk, scores)
        weights = torch.zeros_like(added[:, :, 0]) if initial is None else initial.to(dtype)
        starts, weights = _Carried.apply(added, across, weights)
        read = _plus(read, reach, starts)
    return read.flatten(2, 3).transpose(1, 2)[:, :length].to(given), weights


class _Carried(torch.autograd.Function):
    """W before each chunk (B, H, n, K, M) and behind the last, of added (B, H, n, K, M), across (B, H, n, K, K) or its
    diagonal (B, H, n, K, 1), and the first W. By hand, since autograd has a product and a sum for each chunk's gradient
    of across, which here is one product for all."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, across: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        starts = []
        for add, change in zip(added.unbind(2), across.unbind(2)):
            starts.append(weights)
            weights = _behind(add, change, weights)
        before = torch.stack(starts, 2)
        ctx.save_for_backward(across, before)
        return before, weights

    @staticmethod
    def backward(ctx: Any, to_before: Tensor, to_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        across, before = ctx.saved_tensors
        gradient, found = to_last, []
        for to_start, change in zip(reversed(to_before.unbind(2)), reversed(across.transpose(-1, -2).unbind(2))):
            found.append(gradient)
            change = change.transpose(-1, -2) if change.shape[-2] == 1 else change
            gradient = _behind(to_start, change, gradient)
        to_added = torch.stack(found[::-1], 2)
        if across.shape[-1] == 1:
            return to_added, (to_added * before).sum(-1, keepdim=True), gradient
        return to_added, to_added @ before.transpose(-1, -2), gradient


def _behind(add: Tensor, change: Tensor, weights: Tensor) -> Tensor:
    """add + change W, of a diagonal (…, K, 1) or a matrix (…, K, K)."""
    return torch.addcmul(add, change, weights) if change.shape[-1] == 1 else _plus(add, change, weights)


def _plus(add: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """add + left @ right in one kernel; all have the same leading dimensions."""
    lead = add.shape[:-2]
    return torch.baddbmm(*(x.flatten(0, -3) for x in (add, left, right))).unflatten(0, lead)


def _by_rows(
    parts: list[Tensor | None], resets: Tensor | None, chunk: int, scores: Callable[..., Any]
) -> tuple[Tensor, ...]:
    """``_chunks`` of some rows at a time and computed again backward, where that saves memory."""
    log_decay = parts[3]
    # A program that is exported is for any number of rows, and has no backward pass.
    if _is_exporting() or (log_decay.is_cuda and log_decay.numel() <= KEPT):
        return _chunks(*parts, resets, chunk, scores)
    rows = max(1, AT_ONCE // max(1, log_decay[0].numel()))
    pieces = zip(*([None] * -(-len(log_decay) // rows) if x is None else x.split(rows) for x in (*parts, resets)))
    again = torch.is_grad_enabled() and log_decay.shape[1] > chunk
    compute = partial(checkpoint, _chunks, use_reentrant=False, preserve_rng_state=False) if again else _chunks
    found = [compute(*piece, chunk, scores) for piece in pieces]
    return found[0] if len(found) == 1 else tuple(torch.cat(results) for results in zip(*found))


def _chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    probe: Tensor | None,
    insert: Tensor | None,
    resets: Tensor | None,
    chunk: int,
    scores: Callable[..., Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What chunks of tokens (B, N, H, …) do to the W that each starts from. A token reads own + reach W, and
    added + across W is left: own (B, H, n, C, M), reach (B, H, n, C, K), added (B, H, n, K, M) and across
    (B, H, n, K, K), or its diagonal (B, H, n, K, 1)."""
    within = scores(query, key, log_decay, probe=probe, insert=insert, resets=resets, chunk=chunk)
    if padding := -value.shape[1] % chunk:
        value = F.pad(value, (0, 0, 0, 0, 0, padding))
    value = value.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4).contiguous()  # once, for all products
    if probe is None:
        return within.query_key @ value, within.query_from_start, within.key_to_end @ value, within.last[..., None]
    # Found in W_{t−1}: what keys brought, what of the start is left, and what was found before and put elsewhere.
    found = torch.cat((within.probe_key @ value, within.probe_from_start), dim=-1)
    found = torch.linalg.solve_triangular(-within.probe_insert, found, upper=False, unitriangular=True)
    found, across = found.split((value.shape[-1], key.shape[-1]), dim=-1)
    return (
        _plus(within.query_key @ value, within.query_insert, found),
        _plus(within.query_from_start, within.query_insert, across),
        _plus(within.key_to_end @ value, within.insert_to_end, found),
        _plus(torch.diag_embed(within.last), within.insert_to_end, across),
    )
