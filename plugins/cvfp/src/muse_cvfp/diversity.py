"""What keeps contexts from becoming one: terms of the loss.

Letters: N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muse_cvfp.options import FixedPointOptions

RIDGE = 1e-3
"""ε of log det(Σ + εI): directions without variance cost −log ε each, not infinity."""


def diversity(contexts: Tensor, options: FixedPointOptions) -> Tensor:
    """The scalar to minimise for contexts (N, D), N ≥ 2, in fp32 at least."""
    contexts = contexts.to(torch.promote_types(contexts.dtype, torch.float32))
    if options.diversity == "mean-deviation":
        return mean_deviation(contexts)
    return log_det(contexts) if options.covariance == "log-det" else vicreg(contexts)


def mean_deviation(contexts: Tensor) -> Tensor:
    """−‖C − mean‖_F / N, the original design's formula: at least −√(D / N) where LN has made ‖c‖² = D."""
    return -torch.linalg.vector_norm(contexts - contexts.mean(0)) / len(contexts)


def covariance(contexts: Tensor) -> Tensor:
    """(D, D), of the centred contexts over N."""
    centred = contexts - contexts.mean(0)
    return centred.T @ centred / len(contexts)


def log_det(contexts: Tensor) -> Tensor:
    """−log det(Σ + εI) / D: near 0 at Σ = I, which is its minimum where tr Σ ≤ D, and at most −log ε."""
    with torch.autocast(contexts.device.type, enabled=False):
        sigma = covariance(contexts)
        width = sigma.shape[0]
        factor = torch.linalg.cholesky(sigma + RIDGE * torch.eye(width, dtype=sigma.dtype, device=sigma.device))
        return -2.0 * factor.diagonal().log().sum() / width


def vicreg(contexts: Tensor) -> Tensor:
    """mean_j max(0, 1 − σ_j) + Σ_{i≠j} Σ_ij² / D (Bardes, Ponce and LeCun 2022)."""
    with torch.autocast(contexts.device.type, enabled=False):
        sigma = covariance(contexts)
        deviations = (sigma.diagonal() + 1e-4).sqrt()
        crossed = sigma.square().sum() - sigma.diagonal().square().sum()
        return torch.relu(1.0 - deviations).mean() + crossed / sigma.shape[0]
