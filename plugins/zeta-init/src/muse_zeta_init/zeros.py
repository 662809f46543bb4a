"""Imaginary parts of the zeros of the zeta function, and random points of the same density."""

from __future__ import annotations

from importlib.resources import files

import torch
from torch import Tensor


def zeta_zeros(count: int) -> Tensor:
    """(count,) float64: γ_1 = 14.13… and those after it, from mpmath (``compute_zeros``).

    Raises ValueError when more are asked for than are stored.
    """
    stored = files("muse_zeta_init").joinpath("zeros.txt").read_text().split()
    if count > len(stored):
        raise ValueError(f"{count} zeta zeros are needed, {len(stored)} are stored")
    return torch.tensor([float(digits) for digits in stored[:count]], dtype=torch.float64)


def random_zeros(count: int, generator: torch.Generator) -> Tensor:
    """(count,) float64, ascending: independent points between γ_1 and γ_count with the zeros' mean density.

    They are uniform where the zeros are unfolded to the integers, so neighbours do not repel each other.
    """
    zeros = zeta_zeros(count)
    unfolded = torch.rand(count, dtype=torch.float64, generator=generator).sort().values * (count - 1)
    below = unfolded.long().clamp(max=max(count - 2, 0))
    above = (below + 1).clamp(max=count - 1)
    return torch.lerp(zeros[below], zeros[above], unfolded - below)
