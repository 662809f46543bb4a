"""The potential over x = log(1 + n), in float64.

Letters: p a prime, k an exponent, ε the width of the bumps, w their weights.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from muse_prime_bump.primes import primes_up_to

REACH = 6.0
"""Deviations √ε beyond the last position at which the sum over primes ends; a bump there has fallen to e^−18."""
AT_ONCE = 1 << 22
"""Exponentials computed at once: 32 MiB."""


class Powers(NamedTuple):
    """Prime powers p^k, (S,) each."""

    log_prime: Tensor
    """log p."""
    centre: Tensor
    """k log p."""


def step_down(t: Tensor) -> Tensor:
    """χ: 1 for t ≤ 0, 0 for t ≥ 1, smooth between."""

    def rise(u: Tensor) -> Tensor:
        return torch.where(u > 0, (-1 / u.clamp_min(1e-300)).exp(), 0.0)

    return rise(1 - t) / (rise(1 - t) + rise(t))


def prime_powers(limit: float, max_power: int) -> Powers:
    """Those with k log p ≤ ``limit`` and k ≤ ``max_power``, in the order of k, then p."""
    log_primes = primes_up_to(math.exp(limit)).double().log()
    kept = [log_primes[k * log_primes <= limit] for k in range(1, max_power + 1)]
    return Powers(torch.cat(kept), torch.cat([k * logs for k, logs in enumerate(kept, 1)]))


def weights(powers: Powers, epsilon: float) -> Tensor:
    """w = log p · p^{−k(1/2+ε)} ψ_ε(p^k) with ψ_ε(y) = χ(ε log y − 1). (S,)"""
    decay = (-(0.5 + epsilon) * powers.centre).exp()
    return powers.log_prime * decay * step_down(epsilon * powers.centre - 1)


def bump_sum(x: Tensor, centre: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Σ w ε^{−1/2} exp(−(x − c)²/(2ε)) at each x (N,)."""
    if not len(centre):
        return torch.zeros_like(x)
    rows = max(1, AT_ONCE // len(centre))
    parts = [((part[:, None] - centre).square() / (-2 * epsilon)).exp() @ weight for part in x.split(rows)]
    return epsilon**-0.5 * torch.cat(parts)


def controlled(kind: str, powers: Powers, weight: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Centres and weights: the primes' own, the centres shuffled, or as many random centres of equal weights.

    A bump's L² norm is w (π/ε)^{1/4}, so equal weights are equal norms. What is drawn depends on ``seed`` and the
    number of bumps, not on ε.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "shuffled":
        return powers.centre[torch.randperm(len(weight), generator=generator)], weight
    if kind == "gaussian":
        centre = torch.rand(len(weight), dtype=torch.float64, generator=generator) * powers.centre.amax()
        return centre, weight.square().mean().sqrt().expand_as(weight)
    return powers.centre, weight


@functools.lru_cache(maxsize=4)
def potential(context: int, epsilon: float, widest: float, max_power: int, kind: str, seed: int) -> Tensor:
    """V (context,) float64 of unit root mean square at positions 0 … context − 1. Layers of one model share it.

    ``widest``: the largest ε of the schedule, which decides once how far the sum over primes goes, x_max + 6 √ε.
    """
    x = torch.arange(1, context + 1, dtype=torch.float64).log()
    powers = prime_powers(x[-1].item() + REACH * widest**0.5, max_power)
    centre, weight = controlled(kind, powers, weights(powers, epsilon), seed)
    value = bump_sum(x, centre, weight, epsilon)
    return value / value.square().mean().sqrt()
