"""Angles that tokens add up along a document."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def turns(step: Tensor, before: Tensor | None, resets: Tensor | None) -> Tensor:
    """The sum of ``step`` (B, N, H, R) from the start of each token's document on, from 0 to 2π, added up in float64;
    ``before`` (B, H, R) is the sum carried, ``resets`` (B, N) bool where documents start."""
    exact = step.double()
    total = exact.cumsum(1)
    start = total.new_zeros(()) if before is None else -before.double()[:, None]
    if resets is not None:
        places = torch.arange(total.shape[1], device=total.device)
        latest = torch.where(resets, places, -1).cummax(1).values[..., None, None]
        start = torch.where(latest < 0, start, (total - exact).gather(1, latest.clamp(min=0).expand_as(total)))
    return (total - start).remainder(2 * math.pi).to(step.dtype)
