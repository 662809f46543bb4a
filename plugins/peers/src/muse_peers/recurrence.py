"""Linear memories whose channels decay each at its own rate, in chunks of plain torch operations.

Letters: B batch, N tokens, H heads, K key width, M value width, n chunks of C tokens.

The decay from one token of a chunk to a later one is that up to a token between them times that from there on, so that
scores are matrix products. The tokens between are the middles of halves of halves, and each exponent is a sum of decays
that do apply, at most zero: nothing overflows where a channel forgets quickly. This takes the secondary chunks of gated
linear attention (arXiv:2312.06635, section 4) down to single tokens. All chunks are computed at once but for W, which
goes from one to the next by one product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 64
"""Tokens of a chunk at most, a power of two."""
AT_ONCE = 2**23
"""Numbers N H K of the rows that are computed together; what is kept for their gradients is tens of times as much."""
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
    query: Tensor, writing: Writing, initial: Tensor | None, resets: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """W_tᵀ q_t (B, N, H, M) in the value's dtype, and the last W (B, H, K, M), computed in fp32 at least.

    query (B, N, H, K); ``initial`` (B, H, K, M), None for zeros; ``resets`` (B, N) bool as ``contracts.Tokens.starts``
    gives them, ``valid`` (B, N) bool as in ``contracts.Tokens``: a reset forgets W, a token that is not valid leaves it
    as it is.
    """
    length = query.shape[1]
    given = writing.value.dtype
    dtype = torch.promote_types(torch.promote_types(query.dtype, writing.log_decay.dtype), torch.float32)
    parts = [None if part is None else part.to(dtype) for part in (query, *writing)]
    if valid is not None:
        parts[1:] = [None if part is None else part * valid[..., None, None] for part in parts[1:]]
    chunk = CHUNK if length > CHUNK else 1 << (length - 1).bit_length()
    parts = [None if part is None else _chunks(part, chunk, -length % chunk) for part in parts]
    document = None
    if resets is not None:
        document = F.pad(resets, (0, -length % chunk)).unflatten(1, (-1, chunk)).cumsum(-1)[:, None]
    with torch.autocast(query.device.type, enabled=False):
        read, reach, added, across = _by_rows(parts, document)
        weights = torch.zeros_like(added[:, :, 0]) if initial is None else initial.to(dtype)
        starts = []
        for add, change in zip(added.unbind(2), across.unbind(2)):
            starts.append(weights)
            weights = add + (change * weights if change.shape[-1] == 1 else change @ weights)
        read = read + reach @ torch.stack(starts, 2)
    return read.flatten(2, 3).transpose(1, 2)[:, :length].to(given), weights


def _by_rows(parts: list[Tensor | None], document: Tensor | None) -> tuple[Tensor, ...]:
    """``_chunk`` of some rows at a time, computed again backward where there are many numbers."""
    if _is_exporting():  # a program is for any number of rows, and has no backward pass
        return _chunk(*parts, document)
    log_decay = parts[3]
    rows = max(1, AT_ONCE // max(1, log_decay[0].numel()))
    pieces = zip(*([None] * -(-len(log_decay) // rows) if x is None else x.split(rows) for x in (*parts, document)))
    again = torch.is_grad_enabled() and log_decay.shape[2] > 1
    found = [
        checkpoint(_chunk, *piece, use_reentrant=False, preserve_rng_state=False) if again else _chunk(*piece)
        for piece in pieces
    ]
    return found[0] if len(found) == 1 else tuple(torch.cat(results) for results in zip(*found))


def _chunk(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    probe: Tensor | None,
    insert: Tensor | None,
    document: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What chunks (B, H, n, C, …) do to the W that each starts from. A token reads own + reach W, and added + across W
    is left: own (B, H, n, C, M), reach (B, H, n, C, K), added (B, H, n, K, M) and across (B, H, n, K, K), or its
    diagonal (B, H, n, K, 1). ``document`` (B, 1, n, C) counts a chunk's documents from the one that W comes from."""
    total = log_decay.cumsum(-2)
    reach, last, left = query * total.exp(), total[..., -1, :].exp(), _until_end(log_decay).exp()
    same = carried = None
    if document is not None:
        same = document[..., :, None] == document[..., None, :]
        carried = (document == 0)[..., None]
        reach, last, left = reach * carried, last * carried[..., -1, :], left * same[..., -1, :, None]
    kept = (key * left).transpose(-1, -2)
    if probe is None or insert is None:
        (scores,) = _scores((query,), (key,), log_decay, same)
        return scores @ value, reach, kept @ value, last[..., None]
    reading, putting, finding, retaking = _scores((query, probe), (key, insert), log_decay, same)
    started = probe * _shifted(total).exp()
    if carried is not None:
        started = started * carried
    # Found in W_{t−1}: what keys brought, what of the start is left, and what was found before and put elsewhere.
    found = torch.cat((finding @ value, started), dim=-1)
    system = torch.eye(total.shape[-2], dtype=total.dtype, device=total.device) - retaking
    found = torch.linalg.solve_triangular(system, found, upper=False, unitriangular=True)
    found, across = found.split((value.shape[-1], key.shape[-1]), dim=-1)
    put = (insert * left).transpose(-1, -2)
    return (
        reading @ value + putting @ found,
        reach + putting @ across,
        kept @ value + put @ found,
        torch.diag_embed(last) + put @ across,
    )


def _scores(
    lefts: tuple[Tensor, ...], rights: tuple[Tensor, ...], log_decay: Tensor, same: Tensor | None
) -> list[Tensor]:
    """Σ_k left_i e^{decay from j to i} right_j (…, C, C) for every left with every right, each (…, C, K), zero where i
    is earlier than j or of another document. The first of ``lefts`` stands after the token's own writing and decay, the
    second before both."""
    length, kinds = log_decay.shape[-2], (len(lefts), len(rights))
    left, right = torch.stack(lefts, -2), torch.stack(rights, -2)
    itself = left[..., :1, :] @ right.transpose(-1, -2)
    scores = F.pad(itself, (0, 0, 0, kinds[0] - 1))  # (…, tokens / half, half × lefts, half × rights)
    half = 1
    while half < length:
        early, late = log_decay.unflatten(-2, (-1, 2, half)).unbind(-3)
        since = late.cumsum(-2)
        sinces = torch.stack((since, _shifted(since))[: kinds[0]], -2)
        rows = left.unflatten(-3, (-1, 2, half)).select(-4, 1) * sinces.exp()
        columns = right.unflatten(-3, (-1, 2, half)).select(-4, 0) * _until_end(early).exp()[..., None, :]
        block = rows.flatten(-3, -2) @ columns.flatten(-3, -2).transpose(-1, -2)
        first, second = scores.unflatten(-3, (-1, 2)).unbind(-3)
        above = torch.cat((first, torch.zeros_like(block)), -1)
        scores = torch.cat((above, torch.cat((block, second), -1)), -2)
        half *= 2
    scores = scores.squeeze(-3).unflatten(-1, (length, -1)).unflatten(-3, (length, -1))
    if same is not None:
        scores = scores.masked_fill(~same[..., :, None, :, None], 0.0)
    return [scores[..., i, :, j] for i in range(kinds[0]) for j in range(kinds[1])]


def _until_end(log_decay: Tensor) -> Tensor:
    """(…, C, K): Σ of the decays after each token."""
    return F.pad(log_decay[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def _shifted(total: Tensor) -> Tensor:
    """(…, C, K): the value of the token before, zero at the first."""
    return F.pad(total[..., :-1, :], (0, 0, 1, 0))


def _chunks(x: Tensor, chunk: int, padding: int) -> Tensor:
    """(B, N, H, F) → (B, H, N / C, C, F)."""
    return F.pad(x, (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)
