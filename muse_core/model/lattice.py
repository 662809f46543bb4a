"""The lattice that a causal resolvent reads: energies and hoppings of tridiagonal Hamiltonians. Imported by plugins."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GOLDEN = (math.sqrt(5) - 1) / 2
BAND = 1.9
"""The free lattice's spectrum is (−2, 2); at its very edge the memory length diverges."""


class Lattice(nn.Module):
    """Energy z = E + iη and hopping |l| of each head, in fp32 at least: η = η_min + softplus(b) and |l| = e^λ.

    At the start E is spread evenly over the band, η log-spaced between two bounds and |l| = 1. ``added`` are two more
    bounds: from the first head to the last, η starts higher by rates log-spaced between them. Source: mathematics §1.
    """

    def __init__(
        self,
        heads: int,
        *,
        min_broadening: float,
        initial_broadening: tuple[float, float],
        added: tuple[float, float] | None = None,
    ):
        super().__init__()
        self.min_broadening = min_broadening
        head = torch.arange(heads, dtype=torch.float64)
        low, high = (math.log(bound) for bound in initial_broadening)
        # Multiples of the golden ratio, so that every part of the band has narrow and broad heads.
        broadening = torch.exp(low + (high - low) * torch.frac(0.5 + head * GOLDEN))
        if added is not None:
            first, last = (math.log(bound) for bound in added)
            broadening = broadening + torch.linspace(first, last, heads, dtype=torch.float64).exp()
        dtype = torch.get_default_dtype()
        self.energy = nn.Parameter((BAND * (2 * (head + 0.5) / heads - 1)).to(dtype))
        self.broadening = nn.Parameter((broadening - min_broadening).expm1().log().to(dtype))
        self.hopping = nn.Parameter(torch.zeros(heads, dtype=dtype))

    def forward(self) -> tuple[Tensor, Tensor]:
        """z (H,) complex, and |l| (H,)."""
        # Put together from real numbers, which a compiler fuses; it leaves arithmetic on complex ones alone.
        parts = (self.energy, self.min_broadening + F.softplus(self.broadening))
        return torch.view_as_complex(torch.stack(parts, dim=-1)), self.hopping.exp()
