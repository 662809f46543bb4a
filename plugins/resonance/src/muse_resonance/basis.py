"""Orthonormal bases of C^K, computed in float64.

The zeros are a copy of data, not a dependence on another plugin: see docs/decisions/zeros-in-each-plugin.md.
"""

from __future__ import annotations

import functools
import math
from importlib.resources import files

import torch
from torch import Tensor


def zeta_zeros(count: int) -> Tensor:
    """(count,) float64: imaginary parts of the lowest zeros, γ_1 = 14.13…, from mpmath.

    Raises ValueError when more are asked for than are stored.
    """
    stored = files("muse_resonance").joinpath("zeros.txt").read_text().split()
    if count > len(stored):
        raise ValueError(
            f"a key width of {count} needs as many zeta zeros, {len(stored)} are stored - use narrower keys or "
            'basis = "fourier"'
        )
    return torch.tensor([float(digits) for digits in stored[:count]], dtype=torch.float64)


def plane_waves(frequency: Tensor) -> Tensor:
    """exp(2πi f_j n/K)/√K for n = 0 … K − 1 (rows) and the K frequencies (columns): (K, K) complex128."""
    size = len(frequency)
    phase = 2 * math.pi * torch.arange(size, dtype=torch.float64)[:, None] * frequency / size
    return torch.polar(torch.full_like(phase, size**-0.5), phase)


def orthonormalised(columns: Tensor) -> Tensor:
    """Gram–Schmidt from the first column on: Q of the QR decomposition whose R has a positive diagonal, which makes it
    unique."""
    q, r = torch.linalg.qr(columns)
    diagonal = r.diagonal()
    return q * (diagonal / diagonal.abs())


@functools.cache
def zeta_basis(size: int) -> Tensor:
    """(K, K) complex128 with orthonormal columns, from plane waves at the K lowest zeros; computed once a process."""
    return orthonormalised(plane_waves(zeta_zeros(size)))


@functools.cache
def fourier_basis(size: int) -> Tensor:
    """(K, K) complex128: plane waves at 0 … K − 1, orthonormal as they are."""
    return plane_waves(torch.arange(size, dtype=torch.float64))


def random_basis(size: int, generator: torch.Generator) -> Tensor:
    """(K, K) complex128, uniform over all unitary matrices (Mezzadri 2007)."""
    return orthonormalised(torch.randn(size, size, dtype=torch.complex128, generator=generator))
