"""The rotation of queries and keys, whose angle is a position, a spectral shift, or what a potential adds up to.

Shapes: B batch, N tokens, D width, H heads, K key width, P = K // 2 pairs of entries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens
from muse_core.model.angles import turns

SLOWEST = 1e-3
"""Frequency of the last pair of entries at the start; the first has 1, those between are log-spaced."""


class Frequencies(nn.Module):
    """Frequencies (H, P), in fp32 at least: they multiply angles of thousands of radians. With a ``potential``, a
    linear map to H numbers, also what a token adds to the angle."""

    def __init__(self, heads: int, pairs: int, potential: nn.Linear | None):
        super().__init__()
        first = torch.logspace(0, math.log10(SLOWEST), max(1, pairs))[:pairs]
        self.frequency = nn.Parameter(first.repeat(heads, 1))
        self.potential = potential

    def steps(self, x: Tensor) -> Tensor:
        """ω V of each token (B, N, H, P), V the potential of x (B, N, D)."""
        assert self.potential is not None
        return self.potential(x.to(self.frequency.dtype))[..., None] * self.frequency


class Rotation(nn.Module):
    """Turns the pairs of q and of k by an angle; lengths stay, an odd last entry too.

    positions: frequency × the token's position. spectral-shift: frequency × π ξ. potential: frequency × Σ V since the
    document started, V = w·x + c of the token itself: with the weights' own decay, e^{g + i ω V} for each pair of
    channels. Source: mathematics §3.
    """

    def __init__(self, heads: int, key_width: int, kind: str, potential: nn.Linear | None = None):
        super().__init__()
        self.kind = kind
        self.dynamics = Frequencies(heads, key_width // 2, potential)

    def forward(
        self, query: Tensor, key: Tensor, x: Tensor, shift: Tensor | None, before: Tensor | None, tokens: Tokens
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """query, key (B, N, H, K) → the same turned, in their dtype, and the angle after the last token (B, H, P) where
        it is carried. ``x`` (B, N, D), ``shift`` ξ (B, N, H), ``before`` the angle that was carried."""
        frequency, after = self.dynamics.frequency, None
        with torch.autocast(query.device.type, enabled=False):
            if self.kind == "potential":
                step = self.dynamics.steps(x)
                if tokens.valid is not None:
                    step = step * tokens.valid[..., None, None]
                angle = turns(step, before, tokens.starts())
                after = angle[:, -1]
            elif self.kind == "positions":
                angle = tokens.positions[..., None, None].to(frequency.dtype) * frequency
            else:
                assert shift is not None
                angle = (math.pi * shift)[..., None] * frequency
            cosine, sine = angle.cos(), angle.sin()
            return turned(query, cosine, sine), turned(key, cosine, sine), after


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x (B, N, H, K), the entries p and K // 2 + p a pair; cosine and sine (B, N, H or 1, K // 2)."""
    pairs = cosine.shape[-1]
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), dim=-1)
    parts = (first * cosine - second * sine, first * sine + second * cosine, rest)
    return torch.cat([part.to(x.dtype) for part in parts], dim=-1)
