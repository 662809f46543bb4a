"""Queries and keys turned by an angle that grows along the document, so that what a memory answers depends on distance.

Shapes: B batch, N tokens, H heads, K key width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens
from muse_fast_weights.dynamics import regrouped

SLOWEST = 1e-3
"""Frequency of the last pair of entries at the start; the first has 1, those between are log-spaced."""


class Dynamics(nn.Module):
    """Frequencies (H, K // 2), in fp32 at least: they multiply angles of thousands of radians."""

    def __init__(self, heads: int, pairs: int):
        super().__init__()
        first = torch.logspace(0, math.log10(SLOWEST), max(1, pairs))[:pairs]
        self.frequency = nn.Parameter(first.repeat(heads, 1))


class Rotation(nn.Module):
    """Turns the pairs of q and of k by frequency_p × angle; lengths stay, an odd last entry too."""

    def __init__(self, heads: int, key_width: int, by_position: bool):
        super().__init__()
        self.heads, self.by_position = heads, by_position
        self.dynamics = Dynamics(heads, key_width // 2)

    def forward(self, query: Tensor, key: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
        """query, key (B, N, H, K) → the same turned, in their dtype."""
        frequency = self.dynamics.frequency
        with torch.autocast(query.device.type, enabled=False):
            if self.by_position:
                angle = tokens.positions[..., None].to(frequency.dtype)
            else:
                shift = signals["spectral_shift"]
                angle = math.pi * regrouped(shift, self.heads, "spectral_shift")
            angle = angle[..., None] * frequency
            cosine, sine = angle.cos(), angle.sin()
            return turned(query, cosine, sine), turned(key, cosine, sine)


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x (B, N, H, K), the entries p and K // 2 + p a pair; cosine and sine (B, N, H or 1, K // 2)."""
    pairs = cosine.shape[-1]
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), dim=-1)
    parts = (first * cosine - second * sine, first * sine + second * cosine, rest)
    return torch.cat([part.to(x.dtype) for part in parts], dim=-1)
