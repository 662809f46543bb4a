"""Matrices of a given spectrum with random directions: what initializers of singular values share."""

from __future__ import annotations

import torch
from torch import Tensor

from muse_core.errors import RecipeError


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
