"""Deep memory in chunks of tokens by plain torch operations: the inner gradient in closed form, so that it runs in
inference mode and compiles, and differentiates by autograd.

Chunks follow one another, for each chunk's gradient is taken at the weights that the one before left; within a chunk
everything is a matrix product. Shape suffixes: B batch, H heads, L tokens of a piece, X those and the window's before
them, K key width, M value width, E hidden width, P matrices of a memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..deep_memory_arguments import LINEAR, DeepMemoryCall, DeepMemoryLayout, DeepMemoryState, checked, first_state

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
STEPS = 5
SMALLEST = 1e-6
"""Added to the Frobenius norm, in squares: a momentum of zero stays zero."""
BLOCK = 64
"""Tokens whose products of gates are held as one matrix."""


class Piece(NamedTuple):
    """Consecutive tokens of one chunk, heads first: (B, H, L, ...); resets (B, L)."""

    query: Tensor
    key: Tensor
    value: Tensor
    rate: Tensor
    log_momentum: Tensor | None
    log_decay: Tensor
    resets: Tensor | None


@checked
def deep_memory(call: DeepMemoryCall, layout: DeepMemoryLayout) -> tuple[Tensor, DeepMemoryState]:
    """Chunkwise deep memory; arguments, results and errors as `muse_kernels.deep_memory`.

    Memory of the backward pass O(N (K + E) + N / chunk P K E), and with `recompute` > 1
    O(N (K + E) + (N / (chunk recompute) + recompute) P K E). Source: mathematics §3.
    """
    return by_chunks(call, layout, WholeChunks(shares_of_tokens, scan, read), layout.state_dtype)


def by_chunks(
    call: DeepMemoryCall, layout: DeepMemoryLayout, form: "WholeChunks", dtype: torch.dtype
) -> tuple[Tensor, DeepMemoryState]:
    """(output, final), with the whole chunks run by `form` on queries, keys and values in `dtype`."""
    edges = edges_of_parts(call.offset, layout.tokens, call.chunk, call.recompute)
    learned = call.weights.to(layout.state_dtype)
    state, outputs = first_state(call, layout, layout.state_dtype), []
    with torch.autocast(call.query.device.type, enabled=False):
        for start, stop in zip(edges, edges[1:]):
            whole = (call.offset + start) % call.chunk == 0 and (stop - start) % call.chunk == 0
            part = _part(call, start, stop, dtype if whole else layout.state_dtype, layout.state_dtype)
            if not whole:
                closes = (call.offset + stop) % call.chunk == 0
                output, state = _one_piece(part, closes, call.orthogonalise, learned, state)
            else:
                arguments = (part, call.chunk, call.orthogonalise, learned, form, *state)
                if call.recompute > 1 and torch.is_grad_enabled():
                    found = checkpoint(whole_chunks, *arguments, use_reentrant=False, preserve_rng_state=False)
                else:
                    found = whole_chunks(*arguments)
                output, state = found[0], DeepMemoryState(*found[1:])
            outputs.append(output.to(layout.output_dtype))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
    return output.transpose(1, 2), state


def edges_of_parts(offset: int, tokens: int, chunk: int, recompute: int) -> list[int]:
    """Edges of what runs at once: what is left of a chunk, whole chunks (`recompute` at a time, or all), and a rest."""
    head = min(-offset % chunk, tokens)
    whole = (tokens - head) // chunk
    step = recompute if recompute > 1 else max(1, whole)
    edges = [0, *(head + chunk * min(number + step, whole) for number in range(0, whole, step))]
    return sorted({*edges, head, tokens})


def _part(call: DeepMemoryCall, start: int, stop: int, dtype: torch.dtype, gates: torch.dtype) -> Piece:
    """Tokens of the call, heads first."""
    given = [(x, dtype) for x in (call.query, call.key, call.value)]
    given += [(x, gates) for x in (call.rate, call.log_momentum, call.log_decay)]
    whole = stop - start == call.query.shape[1]  # whose slice would be copied backwards
    cut = (x if x is None else (x if whole else x[:, start:stop]).to(kind).transpose(1, 2) for x, kind in given)
    return Piece(*cut, None if call.resets is None else call.resets[:, start:stop])


def _one_piece(
    piece: Piece, closes: bool, orthogonalise: bool, learned: Tensor, state: DeepMemoryState
) -> tuple[Tensor, DeepMemoryState]:
    """Tokens of a chunk that lie in it alone, and whether they complete it."""
    weights, momentum, pending, log_kept, *window = state
    output = answer(weights, piece.query)
    window_BHcK = [x.transpose(1, 2) for x in window]
    alive = None
    if piece.resets is not None:
        document = piece.resets.cumsum(1)
        again = document[:, None, :, None] > 0
        output = torch.where(again, answer(learned.expand_as(weights), piece.query), output)
        alive = (document == document[:, -1:])[:, None]
        started = piece.resets.any(1)[:, None]
        weights = torch.where(started[..., None, None, None], learned, weights)
        momentum, pending = (x.masked_fill(started[..., None, None, None], 0.0) for x in (momentum, pending))
        log_kept = log_kept.masked_fill(started, 0.0)
        window_BHcK[2] = window_BHcK[2].masked_fill(started[..., None], 0.0)
        piece = piece._replace(
            rate=piece.rate.masked_fill(~alive, 0.0),
            log_decay=piece.log_decay.masked_fill(~alive, 0.0),
            log_momentum=None if piece.log_momentum is None else piece.log_momentum.masked_fill(~alive, 0.0),
        )
    key, value, rate = (
        torch.cat((past, x), 2) for past, x in zip(window_BHcK, (piece.key, piece.value, piece.rate), strict=True)
    )
    shares = shares_of_tokens(piece, alive, orthogonalise)
    span = key.shape[2] - piece.key.shape[2] + 1
    factors_BHwX = rate[:, :, None] * in_later_windows(shares.of_gradients, span)
    gradients = weighted_gradients(weights, key, value, factors_BHwX)
    earlier, momentum = momentum, gradients[0]
    if shares.momentum is not None:
        momentum = momentum + shares.momentum[..., None, None, None] * earlier
    pending = shares.kept[..., None, None, None] * pending
    if orthogonalise:
        pending = pending + shares.stepped[..., None, None, None]
    else:
        pending = pending + gradients[1]
        if shares.earlier is not None:
            pending = pending + shares.earlier[..., None, None, None] * earlier
    log_kept = log_kept + piece.log_decay.sum(-1)
    if closes:
        step = pending * orthogonalised(momentum) if orthogonalise else pending
        weights = log_kept.exp()[..., None, None, None] * weights - step
        pending, log_kept = torch.zeros_like(pending), torch.zeros_like(log_kept)
    window = [x[:, :, x.shape[2] - span + 1 :].transpose(1, 2) for x in (key, value, rate)]
    return output, DeepMemoryState(weights, momentum, pending, log_kept, *window)


class WholeChunks(NamedTuple):
    """A backend's form of what whole chunks need: the tokens' shares, the weights at the chunks' starts, which follow
    one another, and all readings, at once; as `shares_of_tokens`, `scan` and `read`."""

    shares: Callable
    scan: Callable
    read: Callable


def whole_chunks(
    part: Piece, chunk: int, orthogonalise: bool, learned: Tensor, form: WholeChunks, *carried: Tensor
) -> tuple[Tensor, ...]:
    """(output, *state) after whole chunks, from the state at the start of one."""
    state = DeepMemoryState(*carried)
    span = state.window_rate.shape[1] + 1
    window = [x.transpose(1, 2) for x in (state.window_key, state.window_value, state.window_rate)]
    parts = (part.key, part.value, part.rate)
    if span > 1:
        parts = tuple(torch.cat((past.to(x.dtype), x), 2) for past, x in zip(window, parts, strict=True))
    key, value, rate_BHT = parts
    gates = [x if x is None else x.unflatten(-1, (-1, chunk)) for x in part[3:6]]
    factors_BHnX = rate_BHT.unfold(-1, chunk + span - 1, chunk) if span > 1 else rate_BHT.unflatten(-1, (-1, chunk))
    fresh = alive = again = None
    if part.resets is not None:
        document = part.resets.cumsum(1)
        all_documents = F.pad(document, (span - 1, 0))
        last = document[:, chunk - 1 :: chunk, None]
        fresh = (last != F.pad(last, (0, 0, 1, 0))[:, :-1])[..., 0]
        alive = (document.unflatten(1, (-1, chunk)) == last)[:, None]
        factors_BHnX = factors_BHnX.masked_fill(
            (all_documents.unfold(1, chunk + span - 1, chunk) != last)[:, None], 0.0
        )
        gates = [x if x is None else x.masked_fill(~alive, 0.0) for x in gates]
        again = (document.unflatten(1, (-1, chunk)) != F.pad(last, (0, 0, 1, 0))[:, :-1]).flatten(1)
        rate_BHT = rate_BHT.masked_fill((all_documents != document[:, -1:])[:, None], 0.0)
    shares = form.shares(Piece(part.query, part.key, part.value, *gates, None), alive, orthogonalise)
    factors_BHnwX = factors_BHnX[..., None, :] * in_later_windows(shares.of_gradients, span)
    starts_nBHPKE, weights, momentum = form.scan(
        Chunks(key, value, factors_BHnwX, shares.momentum, shares.kept,
               shares.stepped if orthogonalise else shares.earlier, fresh, chunk),
        *(learned, state.weights, state.momentum, orthogonalise),
    )
    query = part.query.to(starts_nBHPKE.dtype)
    output = form.read(starts_nBHPKE, query)
    if again is not None:
        output = torch.where(again[:, None, :, None], answer(learned.to(query.dtype), query), output)
    kept = [x[:, :, x.shape[2] - span + 1 :].transpose(1, 2).to(weights.dtype) for x in (key, value, rate_BHT)]
    pending, log_kept = torch.zeros_like(state.pending), torch.zeros_like(state.log_kept)
    return output, weights, momentum, pending, log_kept, *kept


class Chunks(NamedTuple):
    """What a scan over n whole chunks of C tokens reads; X = C + window - 1 tokens have a share in one."""

    key: Tensor
    """(B, H, X - C + n C, K); chunk i reads X of them from i C on."""
    value: Tensor
    factors: Tensor
    """(B, H, n, w, X): of each token's gradient in the momentum and, without orthogonalisation, in P."""
    momentum: Tensor | None
    """(B, H, n): of the earlier momentum in the momentum; None is nothing."""
    kept: Tensor
    """(B, H, n): of W in the next W."""
    subtracted: Tensor | None
    """(B, H, n): of the direction, or without orthogonalisation of the earlier momentum, in what W loses; None is
    nothing."""
    fresh: Tensor | None
    """(B, n) bool: a document starts in the chunk, so that it trains the learned weights."""
    chunk: int


def scan(
    chunks: Chunks, learned: Tensor, weights: Tensor, momentum: Tensor, orthogonalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """W at the start of every chunk (n, B, H, P, K, E), before it starts afresh, and W and S after the last."""
    starts, size = [], chunks.factors.shape[-1]
    for number in range(chunks.factors.shape[2]):
        starts.append(weights)
        if chunks.fresh is not None:
            fresh = chunks.fresh[:, number, None, None, None, None]
            weights, momentum = torch.where(fresh, learned, weights), momentum.masked_fill(fresh, 0.0)
        first = number * chunks.chunk
        gradients = weighted_gradients(
            *(weights, chunks.key[:, :, first : first + size], chunks.value[:, :, first : first + size]),
            chunks.factors[:, :, number],
        )

        def share(x: Tensor, number: int = number) -> Tensor:
            return x[:, :, number, None, None, None]

        earlier, momentum = momentum, gradients[0]
        if chunks.momentum is not None:
            momentum = momentum + share(chunks.momentum) * earlier
        if orthogonalise:
            lost = share(chunks.subtracted) * orthogonalised(momentum)
        else:
            lost = gradients[1]
            if chunks.subtracted is not None:
                lost = lost + share(chunks.subtracted) * earlier
        weights = share(chunks.kept) * weights - lost
    return torch.stack(starts), weights, momentum


class Shares(NamedTuple):
    """How much of each token's u, and of what was there before them, a piece's tokens leave; (B, H) but the first."""

    of_gradients: Tensor
    """(B, H, w, L): of u_t in the momentum and, without orthogonalisation, in P."""
    momentum: Tensor | None
    """Of the earlier momentum in the momentum; None is nothing."""
    earlier: Tensor | None
    """Of the earlier momentum in P; None is nothing."""
    kept: Tensor
    """Of the earlier P or p."""
    stepped: Tensor | None
    """What the piece's tokens add to p; None where updates are not orthogonalised."""


def shares_of_tokens(piece: Piece, alive: Tensor | None, orthogonalise: bool) -> Shares:
    """The recursions of S, P and p over a piece, solved; dead tokens (`alive` false) have no share."""
    decayed = _after(piece.log_decay)
    counted = decayed if alive is None else decayed.masked_fill(~alive, 0.0)
    stepped = (counted * piece.rate).sum(-1) if orthogonalise else None
    kept = piece.log_decay.sum(-1).exp()
    if piece.log_momentum is None:
        in_momentum = torch.zeros_like(counted)
        in_momentum[..., -1] = 1.0
        momentum = earlier = None
        in_pending = counted
    else:
        in_momentum = _after(piece.log_momentum)
        in_momentum = in_momentum if alive is None else in_momentum.masked_fill(~alive, 0.0)
        momentum = piece.log_momentum.sum(-1).exp()
        in_pending = counted if orthogonalise else _discounted(counted, piece.log_momentum)
        earlier = piece.log_momentum[..., 0].exp() * in_pending[..., 0]
        in_pending = in_pending if alive is None else in_pending.masked_fill(~alive, 0.0)
    shares = (in_momentum,) if orthogonalise else (in_momentum, in_pending)
    return Shares(torch.stack(shares, -2), momentum, earlier, kept, stepped)


def _after(log_gate: Tensor) -> Tensor:
    """exp of the sum of the later tokens' entries (..., L); at most 1, whatever their size."""
    return (log_gate.flip(-1).cumsum(-1).flip(-1) - log_gate).exp()


def _discounted(x: Tensor, log_gate: Tensor) -> Tensor:
    """y_j = x_j + e^{g_{j+1}} y_{j+1} over the last axis, from its end, by blocks."""
    parts, later = [], None
    for stop in range(x.shape[-1], 0, -BLOCK):
        start = max(0, stop - BLOCK)
        sums = log_gate[..., start:stop].cumsum(-1)
        upper = torch.ones(stop - start, stop - start, dtype=torch.bool, device=x.device).triu()
        between = (sums[..., None, :] - sums[..., :, None]).masked_fill(~upper, -torch.inf).exp()
        part = (between @ x[..., start:stop, None])[..., 0]
        if later is not None:
            part = part + (sums[..., -1:] - sums + log_gate[..., stop : stop + 1]).exp() * later
        later = part[..., :1]
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts[::-1], -1)


def in_later_windows(shares: Tensor, span: int) -> Tensor:
    """(..., span - 1 + L) of (..., L): for token j, of those before the piece too, the sum of the shares of
    the piece's tokens whose window of `span` tokens contains it."""
    if span == 1:
        return shares
    return F.pad(shares, (span - 1, span - 1)).unfold(-1, span, 1).sum(-1)


def answer(weights: Tensor, x: Tensor) -> Tensor:
    """f(x; W) for x (..., n, K) and W (..., P, K, E)."""
    if weights.shape[-3] == LINEAR:
        return x @ weights[..., 0, :, :]
    gate, up, down = weights.unbind(-3)
    return x + (F.silu(x @ gate) * (x @ up)) @ down.transpose(-1, -2)


def read(starts: Tensor, query: Tensor) -> Tensor:
    """f(q; W) (B, H, n C, M) of queries (B, H, n C, K) and W at the chunks' starts (n, B, H, P, K, E)."""
    return answer(starts, query.unflatten(2, (starts.shape[0], -1)).movedim(2, 0)).movedim(0, 2).flatten(2, 3)


def weighted_gradients(weights: Tensor, key: Tensor, value: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
    """Gradients in W of 1/2 sum_j factor_j ||f(k_j; W) - v_j||^2, one (B, H, P, K, E) for each factor (B, H, w, X)."""
    if weights.shape[2] == LINEAR:
        error = key @ weights[:, :, 0] - value
        return tuple((key.transpose(-1, -2) @ (f[..., None] * error))[:, :, None] for f in factors.unbind(2))
    gate, up, down = weights.unbind(2)
    opening, raised = key @ gate, key @ up
    share = opening.sigmoid()
    silu = opening * share
    hidden = silu * raised
    error = key + hidden @ down.transpose(-1, -2) - value
    to_hidden = error @ down
    to_opening = to_hidden * raised * (share + silu * (1 - share))
    to_raised = to_hidden * silu
    found = []
    for factor in factors.unbind(2):
        weighted_key = (factor[..., None] * key).transpose(-1, -2)
        weighted_error = (factor[..., None] * error).transpose(-1, -2)
        found.append(torch.stack((weighted_key @ to_opening, weighted_key @ to_raised, weighted_error @ hidden), 2))
    return tuple(found)


def orthogonalised(x: Tensor) -> Tensor:
    """Five Newton-Schulz steps on each matrix (..., K, E) over its Frobenius norm."""
    wide = x.shape[-1] >= x.shape[-2]
    x = x if wide else x.transpose(-1, -2)
    x = x * torch.rsqrt(x.square().sum((-1, -2), keepdim=True) + SMALLEST**2)
    first, second, third = NEWTON_SCHULZ
    for _ in range(STEPS):
        gram = x @ x.transpose(-1, -2)
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x if wide else x.transpose(-1, -2)
