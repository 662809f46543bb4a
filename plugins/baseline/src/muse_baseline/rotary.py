"""Rotary positions (Su et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotate the pairs (i, i + K/2) of the last axis by position × base^(−2i/K) radians.

    x (B, N, H, K) with K even; ``positions`` (B, N) int. Angles are computed in fp32 at least. The inner product of a
    rotated query and a rotated key depends on the difference of their positions only.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = (positions.to(dtype)[..., None] * frequency)[:, :, None]
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half].to(dtype), x[..., half:].to(dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)
