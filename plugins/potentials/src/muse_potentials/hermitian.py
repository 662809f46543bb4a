"""The static potential of Phase 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens
from muse_core.model.context import Context
from muse_potentials.non_hermitian import Projection
from muse_potentials.options import HermitianOptions


class Hermitian(nn.Module):
    """V = W x, Γ = 0. Source: mathematics §2."""

    def __init__(self, options: HermitianOptions, context: Context):
        super().__init__()
        assert context.heads is not None
        self.potential = Projection(context.width, context.heads, scale=options.scale)

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
        potential = self.potential(x)
        return potential, torch.zeros_like(potential)
