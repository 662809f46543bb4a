"""Softmax attention within a document, over everything or a sliding window, for layers that attend.

Letters: B batch rows, N tokens, H query heads, G key-value heads, K head size, M value size, W window, S cached slots,
P slots that every query sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import State, Tokens


def head_size(width: int, heads: int, *, rotary: bool) -> int:
    """K = D / H. Raises ValueError where heads do not divide the width, or rotary positions would find an odd size."""
    if width % heads:
        raise ValueError(f"heads = {heads} does not divide the width {width}")
    size = width // heads
    if rotary and size % 2:
        raise ValueError(f"rotary positions turn pairs, but width {width} / heads {heads} is the odd {size}")
    return size


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotate the pairs (i, i + K/2) of the last axis by position × base^(−2i/K) radians (Su et al. 2021).

    x (B, N, H, K) with K even; ``positions`` (B, N) int. Angles are computed in fp32 at least. The inner product of a
    rotated query and a rotated key depends on the difference of their positions only.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    half = x.shape[-1] // 2
    cos, sin = (_turns_once if torch.compiler.is_dynamo_compiling() else turns)(positions, half, base, dtype)
    first, second = x[..., :half].to(dtype), x[..., half:].to(dtype)
    # Halves are rounded before they are joined, so that what is joined is no wider than x.
    return torch.cat(((first * cos - second * sin).to(x.dtype), (first * sin + second * cos).to(x.dtype)), dim=-1)


def turns(positions: Tensor, half: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position × base^(−i/half), (B, N, 1, half) each, for positions (B, N)."""
    frequency = base ** (-torch.arange(half, device=positions.device, dtype=dtype) / half)
    angle = (positions.to(dtype)[..., None] * frequency)[:, :, None]
    return angle.cos(), angle.sin()


# A compiler would compute them once more for every head and pass, which took 16 % of a Transformer's time on a GPU:
# of an operator it knows only the results, which all layers share.
_turns_once = torch.library.custom_op(
    "muse_core::turns", turns, mutates_args=(),
    schema="(Tensor positions, SymInt half, float base, ScalarType dtype) -> (Tensor, Tensor)",
)


@_turns_once.register_fake
def _(positions: Tensor, half: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (*positions.shape, 1, half)
    return positions.new_empty(shape, dtype=dtype), positions.new_empty(shape, dtype=dtype)


def present(x: Tensor, tokens: Tokens) -> Tensor:
    """(B, N) bool: the tokens that exist."""
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if tokens.valid is None else tokens.valid


def documents(x: Tensor, tokens: Tokens) -> Tensor:
    """(B, N) int: how many documents have started in this call, 0 for the one carried in; padding starts none."""
    starts = tokens.starts()
    if starts is None:
        return torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    return starts.long().cumsum(dim=1)


def visible_to(own: Tensor, document: Tensor, slots: int, window: int | None = None) -> Tensor:
    """(…, 1, N, S + N) bool: query i (slot S + i) may read slot j: same document, not later, within the window.

    ``own`` (…, N) and ``document`` (…, S + N) are document numbers of queries and slots.
    """
    behind = torch.arange(own.shape[-1], device=own.device)[:, None] + slots
    behind = behind - torch.arange(document.shape[-1], device=own.device)
    near = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    return (near & (own[..., :, None] == document[..., None, :])).unsqueeze(-3)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """query (…, N, H, K), key (…, S, G, K), value (…, S, G, M), mask (…, 1, N, S) or None for causal; returns
    (…, N, H, M). ``scale`` multiplies scores, 1/√K by default."""
    mixed = F.scaled_dot_product_attention(
        query.transpose(-3, -2),
        key.transpose(-3, -2),
        value.transpose(-3, -2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[-2] != key.shape[-2],
    )
    return mixed.transpose(-3, -2)


class Always(NamedTuple):
    """Slots that every query sees, whatever its document and position."""

    key: Tensor
    """(P, G, K)."""
    value: Tensor
    """(P, G, M)."""


def attend_window(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    own: Tensor,
    document: Tensor,
    window: int,
    always: Always | None = None,
    scale: float | None = None,
) -> Tensor:
    """Sliding-window attention in O(N W): blocks of queries, each against the W slots before it and itself.

    query (B, N, H, K), keys and values (B, W + N, G, …), ``own`` (B, N), ``document`` (B, W + N).
    """
    length = query.shape[1]
    block = min(length, window)
    padding = -length % block
    blocks = (length + padding) // block

    def padded(slots: Tensor) -> Tensor:
        """With tokens behind the last one that fill its block. F.pad would copy where there are none to add."""
        return F.pad(slots, (0, 0) * (slots.ndim - 2) + (0, padding)) if padding else slots

    def spans(slots: Tensor) -> Tensor:
        """(B, W + N, …) → (B blocks, W + block, …): each block behind the one before it. By joining and not by
        ``unfold``, whose gradient torch's compiler adds up number by number, with atomic additions."""
        if blocks == 1:
            return slots
        parts = padded(slots).unflatten(1, (blocks + 1, block))
        return torch.cat((parts[:, :-1], parts[:, 1:]), dim=2).flatten(0, 1)

    queries = padded(query).unflatten(1, (blocks, block)).flatten(0, 1)
    numbers = padded(own).unflatten(1, (blocks, block)).flatten(0, 1)
    seen, near, read = visible_to(numbers, spans(document), window, window), spans(keys), spans(values)
    if always is not None:
        # Of contiguous parts alone a GPU joins several numbers at a time. len() would fix the rows of a torch program.
        near, read = (
            torch.cat((first.to(slots.dtype).expand(slots.shape[0], -1, -1, -1).contiguous(), slots), dim=1)
            for first, slots in ((always.key, near), (always.value, read))
        )
        seen = F.pad(seen, (len(always.key), 0), value=True)
    mixed = attend(queries, near, read, seen, scale)
    return mixed.unflatten(0, (-1, blocks)).flatten(1, 2)[:, :length]


def heads_of(
    parts: Sequence[Tensor], size: int, convolution: nn.Module | None, state: State, tokens: Tokens
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Queries, keys and values (B, N, ·) by heads, (B, N, ·, K), together through the convolution where there is one,
    and its state."""
    kept: dict[str, Tensor] = {}
    if convolution is not None:
        before = None if state is None else state["convolution"]
        mixed, kept["convolution"] = convolution(torch.cat(list(parts), dim=-1), before, tokens)
        parts = mixed.split([part.shape[-1] for part in parts], dim=-1)
    return [part.unflatten(-1, (-1, size)) for part in parts], kept


def normalised(norm: nn.Module | None, x: Tensor) -> Tensor:
    """x in its dtype, divided in fp32 at least."""
    return x if norm is None else norm(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


SLOTS = ("key", "value", "visible")
"""Of the state: keys and values of earlier tokens (B, S, G, K), and which of them are seen (B, S)."""


def carried_slots(state: State, key: Tensor, value: Tensor, empty: int) -> dict[str, Tensor]:
    """What a state has of ``SLOTS``, or at the start ``empty`` ones that are not seen, (B, empty, G, K) as ``key`` and
    ``value`` (B, N, G, K) are."""
    if state is not None:
        return {name: state[name] for name in SLOTS}
    return {
        "key": key.new_zeros(key.shape[0], empty, *key.shape[2:]),
        "value": value.new_zeros(value.shape[0], empty, *value.shape[2:]),
        "visible": torch.zeros(key.shape[0], empty, dtype=torch.bool, device=key.device),
    }


def newest(state: dict[str, Tensor], window: int, valid: Tensor | None) -> dict[str, Tensor]:
    """The last W slots up to each row's last valid token: of S + N slots (B, S + N, …), the last N of which are tokens
    with ``valid`` (B, N) or None for all, those of each name (B, W, …). S must be W where ``valid`` is given."""
    if valid is None:
        # Copies, since views would keep all N tokens in memory.
        return {name: slots[:, -window:].clone() for name, slots in state.items()}
    index = valid.sum(dim=1, keepdim=True) + torch.arange(window, device=valid.device)
    rows = torch.arange(index.shape[0], device=valid.device)[:, None]
    return {name: slots[rows, index] for name, slots in state.items()}
