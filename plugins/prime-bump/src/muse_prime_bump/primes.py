"""Primes, and random integers of the same density."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def primes_up_to(limit: float) -> Tensor:
    """(P,) int64, ascending, by the sieve of Eratosthenes."""
    size = math.floor(limit) + 1
    if size <= 2:
        return torch.empty(0, dtype=torch.int64)
    prime = np.ones(size, dtype=bool)
    prime[:2] = False
    for n in range(2, math.isqrt(size - 1) + 1):
        if prime[n]:
            prime[n * n :: n] = False
    return torch.from_numpy(np.flatnonzero(prime).astype(np.int64))


def lowest_primes(count: int) -> Tensor:
    """(count,) int64; the n-th prime lies below n (log n + log log n) for n ≥ 6 (Rosser and Schoenfeld 1962)."""
    limit = 13.0 if count < 6 else count * (math.log(count) + math.log(math.log(count)))
    return primes_up_to(limit)[:count]


def random_integers(count: int, generator: torch.Generator) -> Tensor:
    """(count,) int64, ascending: from 3 on each n is in with probability 1/log n, as if primes were independent
    (Cramér 1936)."""
    found = torch.empty(0, dtype=torch.int64)
    start = 3
    while len(found) < count:
        stretch = torch.arange(start, start + 2 * count + 16)
        chosen = torch.rand(len(stretch), dtype=torch.float64, generator=generator) < 1 / stretch.double().log()
        found = torch.cat((found, stretch[chosen]))
        start += len(stretch)
    return found[:count]
