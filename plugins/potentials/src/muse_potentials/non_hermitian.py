"""The dissipative potential of Phase 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.model.context import Context
from muse_potentials.options import NonHermitianOptions
from muse_potentials.projection import Projection, project


class Offset(nn.Module):
    """c per head (H,), with softplus(c) log-spaced between two rates."""

    def __init__(self, heads: int, bounds: tuple[float, float]):
        super().__init__()
        self.offset = nn.Parameter(spaced(heads, bounds).expm1().log().to(torch.get_default_dtype()))


def spaced(heads: int, bounds: tuple[float, float]) -> Tensor:
    """(H,) float64: rates from the first to the second bound in equal ratios."""
    low, high = torch.tensor(bounds, dtype=torch.float64).log()
    return torch.linspace(low, high, heads, dtype=torch.float64).exp()


class NonHermitian(nn.Module):
    """V = W x, Γ = base_decay + softplus(w·x + c) ≥ 0; at the start w = 0, so that Γ is what the options say.

    An amplitude under uniform Γ obeys ‖ψ(t)‖² = e^{−2Γt} ‖ψ(0)‖². Source: mathematics §2.
    """

    def __init__(self, options: NonHermitianOptions, context: Context):
        super().__init__()
        heads = context.heads
        assert heads is not None
        self.base_decay = options.base_decay
        self.adaptive = options.decay == "adaptive"
        self.potential = Projection(context.width, heads, scale=options.scale)
        if self.adaptive:
            self.decay = Projection(context.width, heads, scale=0.0)
            self.dynamics = Offset(heads, options.initial_decay)
        else:
            self.register_buffer("fixed", spaced(heads, options.initial_decay).to(torch.get_default_dtype()))

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
        if self.adaptive:
            potential, decay = project(x, self.potential, self.decay)
            decay = F.softplus(decay + self.dynamics.offset)
        else:
            potential = self.potential(x)
            decay = self.fixed.expand_as(potential)
        return potential, self.base_decay + decay if self.base_decay else decay
