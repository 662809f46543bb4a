"""The potential ``prime-bump``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens
from muse_core.model.context import Context
from muse_prime_bump.bumps import potential
from muse_prime_bump.options import PrimeBumpOptions

LARGEST_CONTEXT = 65_536
SMALLEST_CHANGE = 0.01
"""ε follows its schedule in steps of at least this ratio: 230 tables from 0.1 to 0.01 and not one a step."""


class PrimeBump(nn.Module):
    """V = strength_h · V_ε(log(1 + n)), Γ = 0, with n the position in the document.

    V_ε(x) ∝ Σ_p Σ_k log p · p^{−k(1/2+ε)} ψ_ε(p^k) · ε^{−1/2} exp(−(x − k log p)²/(2ε)), scaled to unit root mean
    square over the context; unscaled it would grow like √n. Positions beyond the context read its last value.
    ε is the buffer ``epsilon``; the table of V_ε is made from it and not stored. Source: mathematics §2.
    """

    def __init__(self, options: PrimeBumpOptions, context: Context):
        super().__init__()
        assert context.heads is not None
        self.options = options
        self.context = options.context or max(2, min(context.sequence_length, LARGEST_CONTEXT))
        self.strength = nn.Parameter(torch.full((context.heads,), options.strength))
        drawn = torch.randint(2**62, (1,), generator=context.generator)
        self.register_buffer("seed", drawn)
        self.register_buffer("epsilon", torch.tensor([options.epsilon[0]], dtype=torch.get_default_dtype()))
        self.register_buffer("table", torch.zeros(self.context), persistent=False)
        self.register_load_state_dict_post_hook(_remake)
        self.remake()

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
        value = self.table[tokens.positions.clamp(max=self.context - 1)][..., None] * self.strength
        return value, torch.zeros_like(value)

    @torch.no_grad()
    def update_statistics(self, metrics: Mapping[str, float], progress: float) -> None:
        wanted = scheduled(self.options, progress)
        far = abs(math.log(wanted / self.made_for)) >= SMALLEST_CHANGE
        if far or (progress >= 1.0 and wanted != self.made_for):
            self.epsilon.fill_(wanted)
            self.remake()

    @torch.no_grad()
    def remake(self) -> None:
        """The table, from the buffers."""
        epsilon = self.epsilon.item()
        self.made_for = epsilon
        seed = 0 if self.options.bumps == "primes" else int(self.seed)
        options = self.options
        made = potential(self.context, epsilon, max(options.epsilon), options.max_power, options.bumps, seed)
        # Rounded in a float64 copy too, so that its table is the same before and after loading.
        self.table.copy_(made.to(torch.get_default_dtype()))


def scheduled(options: PrimeBumpOptions, progress: float) -> float:
    """ε after this share of the run."""
    first, last = options.epsilon
    if options.schedule == "exponential":
        return first * (last / first) ** progress
    share = progress if options.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return first + (last - first) * share


def _remake(module: Any, keys: Any) -> None:
    module.remake()
