"""Tokens to the experts that they go to, and back.

Letters: T tokens, K slots of a token, E experts, D width. A row is one slot's copy of a token; rows are sorted by
expert, those of unused slots last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Order(NamedTuple):
    """How rows are sorted."""

    slot: Tensor
    """(T K,) int: the slot, counted through all tokens, that each row is."""
    row: Tensor
    """(T K,) int: the row of each slot."""
    ends: Tensor
    """(E,) int32: where each expert's rows end."""
    used: Tensor | None
    """(T, K) bool; None when every slot is."""


def sort(expert: Tensor, experts: int, *, every_slot: bool) -> Order:
    """Order of ``expert`` (T, K), −1 for an unused slot; ``every_slot`` promises that there is none."""
    flat = expert.flatten()
    keys = flat if every_slot else torch.where(flat < 0, experts, flat)
    keys, slot = torch.sort(keys.to(torch.int32), stable=True)
    row = torch.empty_like(slot).scatter_(0, slot, torch.arange(len(slot), device=slot.device))
    ends = torch.searchsorted(keys, torch.arange(experts, dtype=torch.int32, device=keys.device), right=True)
    return Order(slot, row, ends.to(torch.int32), None if every_slot else expert >= 0)


def to_rows(x: Tensor, order: Order, slots: int) -> Tensor:
    """x (T, D) → (T K, D). By hand, since the gradient of an indexed copy adds atomically."""
    rows: Tensor = _ToRows.apply(x, order, slots)
    return rows


def to_tokens(rows: Tensor, order: Order, slots: int) -> Tensor:
    """(T K, D) → (T, D), summed over a token's used slots; what unused rows hold does not matter."""
    tokens: Tensor = _ToTokens.apply(rows, order, slots)
    return tokens


def _copied(x: Tensor, order: Order, slots: int) -> Tensor:
    return x[order.slot // slots]


def _summed(rows: Tensor, order: Order, slots: int) -> Tensor:
    found = rows[order.row].unflatten(0, (-1, slots))
    if order.used is not None:
        found = found.masked_fill(~order.used[..., None], 0.0)
    return found.sum(1)


class _ToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Order, slots: int) -> Tensor:
        ctx.order, ctx.slots = order, slots
        return _copied(x, order, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _summed(gradient, ctx.order, ctx.slots), None, None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Order, slots: int) -> Tensor:
        ctx.order, ctx.slots = order, slots
        return _summed(rows, order, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _copied(gradient, ctx.order, ctx.slots), None, None


def within_capacity(expert: Tensor, experts: int, most: int) -> Tensor:
    """``expert`` (B, N, K) with −1 where an expert has ``most`` choices of the row already, by the order of tokens:
    nothing depends on later tokens or other rows."""
    flat = expert.flatten(1)
    own = flat[..., None] == torch.arange(experts, device=expert.device)
    earlier = (own.long().cumsum(1) - 1).gather(2, flat.clamp(min=0)[..., None])[..., 0]
    return expert.masked_fill((earlier >= most).view_as(expert), -1)
