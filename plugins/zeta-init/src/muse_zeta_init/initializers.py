"""Initializers that set the singular values of a matrix and draw its singular vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_core.errors import RecipeError
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


def rank_of(tensor: Tensor, role: str) -> int:
    """The smaller side of a tensor read as a matrix (first axis, all others). RecipeError for fewer than two axes."""
    if tensor.ndim < 2:
        raise RecipeError(
            f"a {role} parameter of shape {tuple(tensor.shape)} has no singular values - narrow the pattern 'match' to "
            f"matrices and embeddings"
        )
    return min(tensor.shape[0], tensor[0].numel())


def with_spectrum(tensor: Tensor, spectrum: Tensor, generator: torch.Generator) -> Tensor:
    """A matrix of the tensor's shape and Frobenius norm whose singular values are proportional to ``spectrum``, with
    singular vectors uniform over all orthonormal sets. A tensor of zeros stays one."""
    rows, columns, rank = tensor.shape[0], tensor[0].numel(), len(spectrum)
    left, right = orthonormal(rows, rank, generator), orthonormal(columns, rank, generator)
    scaled = spectrum * (torch.linalg.vector_norm(tensor.double()) / torch.linalg.vector_norm(spectrum))
    return ((left * scaled.to(left.dtype)) @ right.T).reshape(tensor.shape).to(tensor.dtype)


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) fp32 with orthonormal columns, uniform over all of them (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=generator))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)
