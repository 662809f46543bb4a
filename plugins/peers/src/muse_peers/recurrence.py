"""Linear memories whose channels decay each at its own rate, in chunks of plain torch operations.

Letters: B batch, N tokens, H heads, K key width, M value width, C tokens of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 16
"""Tokens computed together. Decays between two tokens of a chunk are formed channel by channel, C² K numbers a chunk,
since a quotient of two products of decays would overflow where a channel forgets quickly."""


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
    query: Tensor, writing: Writing, initial: Tensor | None, resets: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """W_tᵀ q_t (B, N, H, M) in the value's dtype, and the last W (B, H, K, M), computed in fp32 at least.

    query (B, N, H, K); ``initial`` (B, H, K, M), None for zeros; ``resets`` and ``valid`` (B, N) bool as in
    ``contracts.Tokens``: a reset forgets W, a token that is not valid leaves it as it is.
    """
    batch, length, heads, width = query.shape
    given = writing.value.dtype
    dtype = torch.promote_types(torch.promote_types(query.dtype, writing.log_decay.dtype), torch.float32)
    parts = [None if part is None else part.to(dtype) for part in (query, *writing)]
    if valid is not None:
        parts[1:] = [None if part is None else part * valid[..., None, None] for part in parts[1:]]
        resets = None if resets is None else resets & valid
    chunk = min(CHUNK, length)
    padding = -length % chunk
    query, key, value, log_decay, probe, insert = (None if x is None else _chunks(x, chunk, padding) for x in parts)
    document = torch.zeros(batch, length, dtype=torch.int64, device=query.device)
    if resets is not None:
        document = resets.long()
    document = F.pad(document, (0, padding)).unflatten(1, (-1, chunk)).cumsum(-1).movedim(1, 0)[:, :, None]
    first = value.new_zeros(batch, heads, width, value.shape[-1]) if initial is None else initial.to(dtype)
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        total = log_decay.cumsum(-2)
        for n in range(query.shape[0]):
            taken = None if probe is None else (probe[n], insert[n])
            arguments = (query[n], key[n], value[n], log_decay[n], total[n], taken, document[n], first)
            if torch.is_grad_enabled() and query.shape[0] > 1:
                # Computed again backward: decays alone take 0.8 GB for 32 × 1024 tokens of width 384.
                output, first = checkpoint(_one, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                output, first = _one(*arguments)
            outputs.append(output)
    return torch.cat(outputs, dim=2).transpose(1, 2)[:, :length].to(given), first


def _one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    total: Tensor,
    taken: tuple[Tensor, Tensor] | None,
    document: Tensor,
    first: Tensor,
) -> tuple[Tensor, Tensor]:
    """One chunk: (B, H, C, …), ``document`` (B, 1, C) counted from the one that W comes from."""
    same = document[..., :, None] == document[..., None, :]
    causal = same & torch.ones_like(same[0, 0]).tril()
    carried = (document == 0)[..., None]
    between = _decays(total, total, causal)
    read = _scores(query, between, key) @ value + (query * total.exp() * carried) @ first
    kept = same[..., -1:, :].transpose(-1, -2)
    left = (total[..., -1:, :] - total).exp() * kept
    last = (total[..., -1:, :].exp() * carried[..., -1:, :]).transpose(-1, -2) * first
    last = last + (key * left).transpose(-1, -2) @ value
    if taken is not None:
        probe, insert = taken
        before = total - log_decay
        # A document's first token finds nothing, though its probe stands before its own reset.
        earlier = _decays(before, total, same & torch.ones_like(same[0, 0]).tril(-1))
        found = _scores(probe, earlier, key) @ value + (probe * before.exp() * carried) @ first
        system = torch.eye(found.shape[-2], dtype=found.dtype, device=found.device) - _scores(probe, earlier, insert)
        found = torch.linalg.solve_triangular(system, found, upper=False, unitriangular=True)
        read = read + _scores(query, between, insert) @ found
        last = last + (insert * left).transpose(-1, -2) @ found
    return read, last


def _decays(later: Tensor, earlier: Tensor, visible: Tensor) -> Tensor:
    """e^{later_i − earlier_j} (B, H, C, C, K), zero where j is not visible to i."""
    difference = later[..., :, None, :] - earlier[..., None, :, :]
    return difference.masked_fill(~visible[..., None], -torch.inf).exp()


def _scores(left: Tensor, decays: Tensor, right: Tensor) -> Tensor:
    """Σ_k left_i decays_ij right_j, (B, H, C, C)."""
    return torch.einsum("bhik,bhijk,bhjk->bhij", left, decays, right)


def _chunks(x: Tensor, chunk: int, padding: int) -> Tensor:
    """(B, N, H, F) → (N / C, B, H, C, F)."""
    return F.pad(x, (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)
