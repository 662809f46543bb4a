"""Phases of det(H − z)/det(H⁰ − z), by which the potential shifts the spectrum of the text read so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def increments(free: Tensor, theta: Tensor) -> Tensor:
    """δ = arg(θ⁰/θ) in radians. Both lie in the upper half plane, so the difference of their arguments is in (−π, π)
    and never jumps. Source: mathematics §1."""
    return free.angle() - theta.angle()


def spectral_shift(increment: Tensor, carried: Tensor | None, resets: Tensor | None) -> Tensor:
    """ξ = Σ δ/π since the document started.

    ``increment`` δ (B, N, H), ``carried`` ξ before the first token (B, H), ``resets`` (B, N) bool; returns (B, N, H).
    Source: mathematics §1.
    """
    total = increment.cumsum(dim=1) / math.pi
    from_carried = total if carried is None else total + carried[:, None]
    if resets is None:
        return from_carried
    index = torch.arange(resets.shape[1], device=resets.device)
    start = torch.where(resets, index, -1).cummax(dim=1).values
    before = torch.cat((torch.zeros_like(total[:, :1]), total[:, :-1]), dim=1)
    before_start = before.gather(1, start.clamp(min=0)[..., None].expand_as(total))
    return torch.where(start[..., None] < 0, from_carried, total - before_start)
