"""Scores under a decay per channel in float64, from the sum of the decays between every two tokens of a chunk."""

import torch
from torch import Tensor

from ..chunks import in_chunks
from ..decayed_arguments import DecayedScores, check_decayed_scores


def decayed_scores(
    query: Tensor, key: Tensor, log_decay: Tensor, *, probe: Tensor | None = None, insert: Tensor | None = None,
    resets: Tensor | None = None, chunk: int = 64,
) -> DecayedScores:  # fmt: skip
    """As `muse_kernels.decayed_scores`, in float64; keeps C^3 and C^2 K numbers a chunk."""
    given = check_decayed_scores(query, key, log_decay, probe, insert, resets, chunk)
    padded = [None if x is None else in_chunks(x.double(), chunk) for x in given[:5]]
    query, key, log_decay, probe, insert = padded
    at = torch.arange(chunk, device=query.device)
    i, j, t = at[:, None, None], at[None, :, None], at[None, None, :]
    same = carried = ends = torch.ones((), dtype=query.dtype, device=query.device)
    if given.document is not None:
        document = given.document[:, None]
        same = (document[..., :, None] == document[..., None, :]).to(query.dtype)
        carried = (document == 0).to(query.dtype)[..., None]
        ends = (document == document[..., -1:]).to(query.dtype)[..., None]

    def decay(between: Tensor) -> Tensor:
        return torch.einsum("ijt,...tk->...ijk", between.to(query.dtype), log_decay).exp()

    def scores(left: Tensor, right: Tensor, over: Tensor, seen: Tensor) -> Tensor:
        return torch.einsum("...ik,...ijk,...jk->...ij", left, over, right) * seen * same

    after, before = decay((j < t) & (t <= i)), decay((j < t) & (t < i))
    now, earlier = ((at[None, :] <= at[:, None]).to(query.dtype), (at[None, :] < at[:, None]).to(query.dtype))
    from_start = decay((t <= i) & (j == 0))[..., 0, :] * carried
    to_end = decay((t > i) & (j == 0))[..., 0, :] * ends
    found = DecayedScores(
        scores(query, key, after, now),
        query * from_start,
        (key * to_end).transpose(-1, -2),
        from_start[..., -1, :],
    )
    if probe is None or insert is None:
        return found
    start = decay((t < i) & (j == 0))[..., 0, :] * carried
    return DecayedScores(
        *found[:4],
        scores(query, insert, after, now),
        scores(probe, key, before, earlier),
        scores(probe, insert, before, earlier),
        probe * start,
        (insert * to_end).transpose(-1, -2),
    )
