"""Fast weights in chunks of tokens by plain torch operations: no compiler, gradients of any order by autograd.

Within a chunk everything is a matrix product; only the states at the chunk starts are sequential, one product each.
Shape suffixes: B batch, H heads, n chunks, C tokens of a chunk, K key width, M value width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import Call, Layout, checked
from ..chunks import in_chunks


@checked
def fast_weights(call: Call, layout: Layout) -> tuple[Tensor, Tensor]:
    """Chunkwise fast weights; arguments, results and errors as `muse_kernels.fast_weights`.

    Cost O(N chunk (K + M) + N K M), memory O(N (chunk + K + M) + N/chunk K M). Source: mathematics §3.
    """
    query, key, value, log_decay, rate, rule, initial, resets, read, chunk = call
    if initial is None:
        initial = key.new_zeros(layout.state_shape, dtype=layout.state_dtype)
    query, key, value, log_decay, rate, initial = (
        x.to(layout.state_dtype) for x in (query, key, value, log_decay, rate, initial)
    )
    # Autocast would run the products in half precision; the state is accumulated in float32 at least.
    with torch.autocast(query.device.type, enabled=False):
        if layout.tokens == 1:
            output, final = _one_token(query, key, value, log_decay, rate, rule, initial, resets, read)
        else:
            output, final = _by_chunks(
                query, key, value, log_decay, rate, rule, initial, resets, read, min(chunk, layout.tokens)
            )
    return output.to(layout.output_dtype), final


def _one_token(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    rule: str,
    start_BHKM: Tensor,
    resets: Tensor | None,
    read: str,
) -> tuple[Tensor, Tensor]:
    """The recurrence itself, for the step of a generation: of one token the chunk is more work than the token."""
    q_BH1K, k_BH1K, v_BH1M = (x.transpose(1, 2) for x in (query, key, value))
    if resets is not None:
        start_BHKM = start_BHKM.masked_fill(resets[:, 0, None, None, None], 0.0)
    kept_BHKM = log_decay[:, 0, :, None, None].exp() * start_BHKM
    if rule == "delta":
        v_BH1M = v_BH1M - k_BH1K @ kept_BHKM
    write_BH1M = rate[:, 0, :, None, None] * v_BH1M
    final_BHKM = torch.addcmul(kept_BHKM, k_BH1K.transpose(-1, -2), write_BH1M)
    output_BH1M = q_BH1K @ (final_BHKM if read == "after" else start_BHKM)
    return output_BH1M.transpose(1, 2), final_BHKM


def _by_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    rate: Tensor,
    rule: str,
    start_BHKM: Tensor,
    resets: Tensor | None,
    read: str,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    q_BHnCK, k_BHnCK, v_BHnCM, g_BHnC, rate_BHnC = (in_chunks(x, chunk) for x in (query, key, value, log_decay, rate))
    resets_BHnC = None if resets is None else in_chunks(resets[..., None], chunk)
    decay = _decays(g_BHnC, resets_BHnC, read)

    key_to_end_BHnKC = (k_BHnCK * decay.to_end[..., None]).transpose(-1, -2)
    write_BHnCM = rate_BHnC[..., None] * v_BHnCM
    if rule == "hebbian":
        starts_BHnKM, final_BHKM = _carry(start_BHKM, decay.across, key_to_end_BHnKC @ write_BHnCM)
    else:
        correct_BHnCK = (rate_BHnC * decay.from_start)[..., None] * k_BHnCK
        write_BHnCM, correct_BHnCK = _solve_chunk(k_BHnCK, rate_BHnC, decay.strict, write_BHnCM, correct_BHnCK)
        starts_BHnKM, write_BHnCM, final_BHKM = _carry_delta(
            start_BHKM, decay.across, key_to_end_BHnKC, write_BHnCM, correct_BHnCK
        )
    within_BHnCM = (q_BHnCK @ k_BHnCK.transpose(-1, -2) * decay.read) @ write_BHnCM
    output_BHnCM = within_BHnCM + (q_BHnCK * decay.read_start[..., None]) @ starts_BHnKM
    return output_BHnCM.flatten(2, 3)[:, :, : query.shape[1]].transpose(1, 2), final_BHKM


class _Decays(NamedTuple):
    """Decay between tokens of a chunk, zero across a reset and against causality."""

    strict: Tensor
    """(B, H, n, C, C): from the write of j to the state after i > j."""
    read: Tensor
    """(B, H, n, C, C): from the write of j to what token i reads."""
    read_start: Tensor
    """(B, H, n, C): from the chunk's start to what token i reads."""
    from_start: Tensor
    """(B, H, n, C): from the chunk's start to the state after i."""
    to_end: Tensor
    """(B, H, n, C): from the write of j to the chunk's end."""
    across: Tensor
    """(B, H, n): from the chunk's start to its end."""


def _decays(log_decay: Tensor, resets: Tensor | None, read: str) -> _Decays:
    # The decay of a reset token multiplies zero: dropping it keeps large values out of the sums beside it.
    if resets is not None:
        log_decay = log_decay.masked_fill(resets, 0.0)
    after = log_decay.cumsum(-1)
    at_read = after if read == "after" else after - log_decay
    chunk = log_decay.shape[-1]
    earlier = torch.ones(chunk, chunk, dtype=torch.bool, device=log_decay.device).tril(-1)
    readable = earlier if read == "before" else earlier.logical_not().T
    if resets is None:
        kept_from_start = kept_to_end = kept_across = None
    else:
        segment = resets.cumsum(-1)
        together = segment[..., :, None] == segment[..., None, :]
        earlier, readable = earlier & together, readable & together
        kept_from_start, kept_to_end = segment == 0, segment == segment[..., -1:]
        kept_across = kept_from_start[..., -1]
    return _Decays(
        strict=_kept_exp(after[..., :, None] - after[..., None, :], earlier),
        read=_kept_exp(at_read[..., :, None] - after[..., None, :], readable),
        read_start=_kept_exp(at_read, kept_from_start),
        from_start=_kept_exp(after, kept_from_start),
        to_end=_kept_exp(after[..., -1:] - after, kept_to_end),
        across=_kept_exp(after[..., -1], kept_across),
    )


def _kept_exp(exponent: Tensor, kept: Tensor | None) -> Tensor:
    # Masked before exp: against causality the exponent is positive and may overflow.
    return (exponent if kept is None else exponent.masked_fill(~kept, -torch.inf)).exp()


def _carry(start: Tensor, across: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """States at the chunk starts (B, H, n, K, M) and after the last chunk, from what each chunk adds."""
    starts = [start]
    for decay, addition in zip(across.unbind(2), added.unbind(2), strict=True):
        starts.append(torch.addcmul(addition, decay[..., None, None], starts[-1]))
    return torch.stack(starts[:-1], dim=2), starts[-1]


def _solve_chunk(key: Tensor, rate: Tensor, strict: Tensor, write: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """(I + A)^-1 applied to the writes and to the corrections, A = rate_i k_i.k_j decay(i, j) for i > j."""
    lower = rate[..., None] * (key @ key.transpose(-1, -2)) * strict
    sides = torch.cat((write, correct), dim=-1)
    solved = torch.linalg.solve_triangular(lower, sides, upper=False, unitriangular=True)
    return solved.split((write.shape[-1], correct.shape[-1]), dim=-1)


def _carry_delta(
    start: Tensor, across: Tensor, key_to_end: Tensor, write: Tensor, correct: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_carry`, where each chunk first corrects its writes by what the state already answers."""
    starts, writes = [start], []
    chunks = zip(across.unbind(2), key_to_end.unbind(2), write.unbind(2), correct.unbind(2), strict=True)
    for decay, key_t, raw, correction in chunks:
        writes.append(raw - correction @ starts[-1])
        starts.append(torch.addcmul(key_t @ writes[-1], decay[..., None, None], starts[-1]))
    return torch.stack(starts[:-1], dim=2), torch.stack(writes, dim=2), starts[-1]
