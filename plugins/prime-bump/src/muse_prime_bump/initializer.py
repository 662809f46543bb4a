"""The initializer ``prime-bump``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_core.model.spectra import rank_of, with_spectrum
from muse_prime_bump.options import PrimeBumpInitializerOptions
from muse_prime_bump.primes import lowest_primes, random_integers


class PrimeBumpInitializer:
    """σ ∝ log p · p^{−1/2−ε} at the lowest primes or, as a control, at random integers as dense as they are.

    Source: mathematics §4.
    """

    def __init__(self, options: PrimeBumpInitializerOptions, context: Any):
        self.options = options

    def __call__(self, tensor: Tensor, *, role: str, generator: torch.Generator) -> Tensor:
        rank = rank_of(tensor, role)
        random = self.options.integers == "random"
        integers = (random_integers(rank, generator) if random else lowest_primes(rank)).double()
        return with_spectrum(tensor, integers.log() * integers ** -(0.5 + self.options.epsilon), generator)
