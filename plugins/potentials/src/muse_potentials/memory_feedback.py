"""The potential through which a memory acts on the Hamiltonian."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens
from muse_core.model.context import Context
from muse_potentials.non_hermitian import Projection
from muse_potentials.options import MemoryFeedbackOptions


class MemoryFeedback(nn.Module):
    """V_t = w·m_t, Γ = 0, where m_t = W_{t−1}ᵀ q_t is the signal ``memory_before`` of the nearest earlier memory.

    Has no parameters and is zero where no memory comes before. Source: mathematics §2.
    """

    def __init__(self, options: MemoryFeedbackOptions, context: Context):
        super().__init__()
        assert context.heads is not None
        self.heads = context.heads
        shape = context.signals.get("memory_before")
        self.potential = None if shape is None else Projection(math.prod(shape), context.heads, scale=options.scale)

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
        if self.potential is None:
            potential = x.new_zeros(*x.shape[:2], self.heads, dtype=torch.promote_types(x.dtype, torch.float32))
        else:
            potential = self.potential(signals["memory_before"].flatten(2))
        return potential, torch.zeros_like(potential)
