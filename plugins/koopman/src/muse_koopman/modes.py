"""A linear map fitted on state pairs, and its modes by size.

Letters: m outputs, n inputs, k modes; W (m, n) the fitted map; C (n, n) the mean of x xᵀ; ρ the largest size.
Source: mathematics §7.
"""

from __future__ import annotations

import math

import attrs
import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from muse_koopman.pairs import Moments

SMALLEST = 1e-12
"""Sizes below this share of the largest count as this share."""


@attrs.frozen(kw_only=True)
class Modes:
    """W ≈ left_r · right_r for every rank r: outputs are kept in the span of the first r columns of ``basis``."""

    basis: Tensor
    """(m, k) with orthonormal columns."""
    fitted: Tensor
    """(m, n): W."""
    sizes: Tensor
    """(k,) descending: |λ| of a square map in Schur form, singular values otherwise."""
    pairs: Tensor
    """(k,) bool: this mode and the next are a conjugate pair, which stays together."""

    @property
    def distance(self) -> Tensor:
        """|log |λ|/ρ|, (k,): 0 for the largest."""
        floor = (self.sizes[0] * SMALLEST).clamp_min(torch.finfo(self.sizes.dtype).tiny)
        return (self.sizes[0].clamp_min(floor) / self.sizes.clamp_min(floor)).log().abs()

    def rank(self, epsilon: float) -> int:
        """How many modes the cutoff keeps: those with ψ_ε ≥ 1/2, at least one, none without its partner.

        ε counts in units of one over the map's mean distance, so that one ε cuts a steep spectrum and a flat one at
        comparable ranks.
        """
        distance = self.distance
        unit = distance.mean().clamp_min(torch.finfo(distance.dtype).tiny)
        return self.whole(max(1, int((cutoff(distance / unit, epsilon) >= 0.5).sum())))

    def whole(self, rank: int) -> int:
        """The rank, or one less where it would part a pair; one more where nothing were left."""
        if rank < len(self.sizes) and bool(self.pairs[rank - 1]):
            return rank - 1 if rank > 1 else rank + 1
        return rank

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """left (m, rank) and right (rank, n) of equal Frobenius norm, so that training moves both alike."""
        left = self.basis[:, :rank]
        right = left.T @ self.fitted
        share = (right.norm() / left.norm()).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        return left * share, right / share


def cutoff(distance: Tensor, epsilon: float) -> Tensor:
    """ψ_ε = χ(ε |log |λ|/ρ| − 1), χ smooth from 1 at 0 to 0 at 1: 1 up to a distance of 1/ε, 0 from 2/ε on.

    The cutoff of the prime-bump potential (mathematics §2), whose log n is here |log |λ|/ρ|.
    """
    t = epsilon * distance - 1

    def rise(u: Tensor) -> Tensor:
        return torch.where(u > 0, (-1 / u.clamp_min(1e-300)).exp(), 0.0)

    return rise(1 - t) / (rise(1 - t) + rise(t))


def fitted_map(moments: Moments, ridge: float) -> tuple[Tensor, Tensor]:
    """W = Σ y xᵀ (Σ x xᵀ + count · r I)⁻¹ with r = ``ridge`` × the mean square of an input, and C + r I."""
    n = moments.inputs.shape[0]
    covariance = moments.inputs / moments.count
    r = ridge * covariance.diagonal().mean()
    regular = covariance + r * torch.eye(n, dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve(regular, moments.pairs.T / moments.count).T, regular


def schur_modes(fitted: Tensor) -> Modes:
    """Of a square map: the real Schur form W = Q T Qᵀ with |λ| descending, conjugate pairs in one 2 × 2 block.

    The first r columns of Q span an invariant subspace: (1 − Q_r Q_rᵀ) W acts on the rest by the modes that are left
    out.
    """
    form, basis = scipy.linalg.schur(fitted.cpu().numpy(), output="real")
    form, basis = ordered(form, basis)
    sizes, pairs = moduli(form)
    return Modes(
        basis=torch.from_numpy(basis).to(fitted),
        fitted=fitted,
        sizes=torch.from_numpy(sizes).to(fitted),
        pairs=torch.from_numpy(pairs).to(fitted.device),
    )


def moduli(form: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|λ| (k,) along the diagonal of a real Schur form, and where a 2 × 2 block begins. |λ|² of a block is its
    determinant."""
    k = len(form)
    sizes, pairs = np.abs(np.diagonal(form)).copy(), np.zeros(k, dtype=bool)
    pairs[:-1] = np.diagonal(form, -1) != 0
    for first in np.flatnonzero(pairs):
        block = form[first : first + 2, first : first + 2]
        sizes[first : first + 2] = math.sqrt(abs(np.linalg.det(block)))
    return sizes, pairs


def ordered(form: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Schur form with its blocks by |λ|, the largest first, by LAPACK's exchanges of neighbouring blocks (dtrexc).

    One exchange brings the largest block that is left up; exchanges of blocks that are nearly equal may fail, and leave
    them as they are.
    """
    place = 0
    while place < len(form):
        sizes, pairs = moduli(form)
        largest = place + int(np.argmax(sizes[place:]))
        if largest > place:
            form, basis, _ = scipy.linalg.lapack.dtrexc(form, basis, largest + 1, place + 1)
            pairs = moduli(form)[1]
        place += 2 if pairs[place] else 1
    return form, basis


def singular_modes(fitted: Tensor, regular: Tensor | None = None) -> Modes:
    """Singular vectors of W C^{1/2}, the reduced-rank regression on inputs with second moment C; of W itself when
    ``regular`` is None."""
    root = None if regular is None else torch.linalg.cholesky(regular)
    basis, sizes, _ = torch.linalg.svd(fitted if root is None else fitted @ root, full_matrices=False)
    return Modes(basis=basis, fitted=fitted, sizes=sizes, pairs=torch.zeros_like(sizes, dtype=torch.bool))


def relative_error(matrix: Tensor, moments: Moments) -> float:
    """‖y − matrix · x‖ / ‖y‖ over the state pairs."""
    matrix = matrix.double()
    error = (matrix @ moments.inputs * matrix).sum() - 2 * (matrix * moments.pairs).sum() + moments.outputs
    return math.sqrt(max(0.0, float(error)) / max(moments.outputs, 1e-300))
