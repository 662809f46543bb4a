"""A linear recurrence of every channel by itself, in log₂ N passes over all tokens.

Shapes: B batch, N tokens, R channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _doubled(factor: Tensor, term: Tensor) -> Tensor:
    """h by recursive doubling (Hillis and Steele 1986): after a pass of shift s, a token knows its last 2 s tokens."""
    shift = 1
    while shift < factor.shape[1]:
        term = torch.cat((term[:, :shift], torch.addcmul(term[:, shift:], factor[:, shift:], term[:, :-shift])), dim=1)
        factor = torch.cat((factor[:, :shift], factor[:, shift:] * factor[:, :-shift]), dim=1)
        shift *= 2
    return term


class _Recurrence(torch.autograd.Function):
    """Keeps a and h for the backward pass, which is the same recurrence from the end."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, term: Tensor) -> Tensor:
        hidden = _doubled(factor, term)
        ctx.save_for_backward(factor, hidden)
        return hidden

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        factor, hidden = ctx.saved_tensors
        # What reaches h_t: its own gradient, and a_{t+1} times what reaches h_{t+1}.
        next_factor = torch.cat((factor[:, 1:], torch.zeros_like(factor[:, :1])), dim=1)
        reaching = _Recurrence.apply(next_factor.flip(1), gradient.flip(1)).flip(1)
        earlier = torch.cat((torch.zeros_like(hidden[:, :1]), hidden[:, :-1]), dim=1)
        return reaching * earlier, reaching


def recurrence(factor: Tensor, term: Tensor, initial: Tensor | None) -> Tensor:
    """h_t = a_t h_{t−1} + b_t for a, b (B, N, R) and h_{−1} (B, R), zeros when None → h (B, N, R).

    Exact for every a, zeros included, since nothing is divided; no sum grows where 0 ≤ a ≤ 1. Differentiable twice.
    """
    if initial is not None:
        term = torch.cat((torch.addcmul(term[:, :1], factor[:, :1], initial[:, None]), term[:, 1:]), dim=1)
    return _Recurrence.apply(factor, term)
