"""Initializers that set the singular values of a matrix and draw its singular vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_core.model.spectra import rank_of, with_spectrum
from muse_zeta_init.options import OrthogonalOptions, RandomSpectrumOptions, ZetaOptions
from muse_zeta_init.zeros import random_zeros, zeta_zeros


class Zeta:
    """σ_i ∝ 1/γ_i. Source: mathematics §4."""

    def __init__(self, options: ZetaOptions, context: Any):
        pass

    def __call__(self, tensor: Tensor, *, role: str, generator: torch.Generator) -> Tensor:
        return with_spectrum(tensor, 1 / zeta_zeros(rank_of(tensor, role)), generator)


class Orthogonal:
    """σ_i equal: orthogonal rows or columns."""

    def __init__(self, options: OrthogonalOptions, context: Any):
        pass

    def __call__(self, tensor: Tensor, *, role: str, generator: torch.Generator) -> Tensor:
        return with_spectrum(tensor, torch.ones(rank_of(tensor, role), dtype=torch.float64), generator)


class RandomSpectrum:
    """σ_i ∝ 1/γ'_i for independent points γ' with the density of the zeros."""

    def __init__(self, options: RandomSpectrumOptions, context: Any):
        pass

    def __call__(self, tensor: Tensor, *, role: str, generator: torch.Generator) -> Tensor:
        return with_spectrum(tensor, 1 / random_zeros(rank_of(tensor, role), generator), generator)
