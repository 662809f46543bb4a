"""Metrics of contexts and of iterations at frozen weights.

Letters: N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Verdict = Literal["CONVERGED", "CONVERGING", "DIVERGING", "UNSTABLE"]
CONVERGED_BELOW = 1e-3
"""Mean squared difference of two passes under which a fixed point counts as reached."""
REDUCED_BY = 10.0
"""Per cent that the difference must fall over the passes to count as converging."""


def effective_rank(vectors: Tensor) -> float:
    """exp(entropy of the normalised singular values) of the centred vectors (N, D) (Roy and Vetterli 2007): between 1
    and min(N − 1, D). In float64."""
    centred = vectors.detach().to("cpu", torch.float64)
    values = torch.linalg.svdvals(centred - centred.mean(0))
    shares = values / values.sum()
    shares = shares[shares > 0]
    return math.exp(-(shares * shares.log()).sum().item())


def gaussian_ceiling(tokens: int, width: int, *, seed: int = 0) -> float:
    """The effective rank of independent normal vectors, as many and as wide: what a finite sample of a full-rank
    cloud shows."""
    generator = torch.Generator().manual_seed(seed)
    return effective_rank(torch.randn(tokens, width, generator=generator, dtype=torch.float64))


def of_total(rank: float, width: int) -> str:
    """``429.0/768 (55.9 %)``."""
    return f"{rank:.1f}/{width} ({100 * rank / width:.1f} %)"


def rate(converged: Tensor) -> str:
    """A (N,) bool tensor as per cent with counts: ``0.0 % (0/6400)``."""
    count = int(converged.sum())
    return f"{100 * count / len(converged):.1f} % ({count}/{len(converged)})"


def slope(losses: Sequence[float]) -> float:
    """Least-squares slope of log₁₀ loss a pass; losses of zero count as the smallest float64."""
    logs = np.log10(np.maximum(np.asarray(losses, dtype=np.float64), np.finfo(np.float64).tiny))
    return float(np.polyfit(np.arange(len(logs)), logs, 1)[0])


def reduction(losses: Sequence[float]) -> float:
    """Per cent by which the last is below the first."""
    return 100.0 * (1.0 - losses[-1] / losses[0]) if losses[0] else 0.0


def verdict(losses: Sequence[float]) -> Verdict:
    """Of mean squared differences between passes: CONVERGED below 1e-3 at the end; else CONVERGING when they fell by
    10 % or more with a falling slope, DIVERGING when they rose by that with a rising one, and UNSTABLE otherwise, as
    when any is not finite."""
    if not all(map(math.isfinite, losses)):
        return "UNSTABLE"
    if losses[-1] < CONVERGED_BELOW:
        return "CONVERGED"
    if reduction(losses) >= REDUCED_BY and slope(losses) < 0:
        return "CONVERGING"
    return "DIVERGING" if reduction(losses) <= -REDUCED_BY and slope(losses) > 0 else "UNSTABLE"
