"""Scores under a decay per channel by plain torch operations.

The decay from one token of a chunk to a later one is that up to a token between them times that from there on, so that
scores are matrix products. The tokens between are the middles of halves of halves, and each exponent is a sum of decays
that do apply, at most zero: nothing overflows where a channel forgets quickly. This takes the secondary chunks of gated
linear attention (arXiv:2312.06635, section 4) down to single tokens.

Shapes: B batch, N tokens, H heads, K key width, n chunks of C tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..chunks import in_chunks
from ..decayed_arguments import DecayedScores, check_decayed_scores, computed_in


def decayed_scores(
    query: Tensor, key: Tensor, log_decay: Tensor, *, probe: Tensor | None = None, insert: Tensor | None = None,
    resets: Tensor | None = None, chunk: int = 64,
) -> DecayedScores:  # fmt: skip
    """Arguments, results and errors as `muse_kernels.decayed_scores`."""
    given = check_decayed_scores(query, key, log_decay, probe, insert, resets, chunk)
    return of_documents(*given, chunk)


def of_documents(
    query: Tensor, key: Tensor, log_decay: Tensor, probe: Tensor | None, insert: Tensor | None,
    document: Tensor | None, chunk: int,
) -> DecayedScores:  # fmt: skip
    """As `decayed_scores`, of the numbers of the tokens' documents within each chunk (B, n, C) instead of resets."""
    dtype = computed_in(query, key, log_decay, probe, insert)
    tokens = (query, key, log_decay, probe, insert)
    chunks = [None if x is None else in_chunks(x.to(dtype), chunk) for x in tokens]
    # Autocast would run the products in half precision.
    with torch.autocast(query.device.type, enabled=False):
        return _of_chunks(*chunks, document)


def _of_chunks(
    query: Tensor, key: Tensor, log_decay: Tensor, probe: Tensor | None, insert: Tensor | None, document: Tensor | None
) -> DecayedScores:
    """Of tokens in chunks (B, H, n, C, K), in one dtype."""
    total = log_decay.cumsum(-2)
    from_start, last, left = total.exp(), total[..., -1, :].exp(), _until_end(log_decay).exp()
    same = carried = None
    if document is not None:
        document = document[:, None]
        same = document[..., :, None] == document[..., None, :]
        carried = (document == 0)[..., None]
        from_start, last, left = from_start * carried, last * carried[..., -1, :], left * same[..., -1, :, None]
    ends = query * from_start, (key * left).transpose(-1, -2), last
    if probe is None or insert is None:
        (scores,) = _scores((query,), (key,), log_decay, same)
        return DecayedScores(scores, *ends)
    query_key, query_insert, probe_key, probe_insert = _scores((query, probe), (key, insert), log_decay, same)
    started = probe * _shifted(total).exp()
    if carried is not None:
        started = started * carried
    removed = (query_insert, probe_key, probe_insert, started, (insert * left).transpose(-1, -2))
    return DecayedScores(query_key, *ends, *removed)


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
