"""The dissipative potential of Phase 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.model.context import Context
from muse_potentials.options import NonHermitianOptions


class Projection(nn.Module):
    """x (…, F) → ``scale`` · W x (…, H) in fp32 at least, of root mean square ``scale`` at the start for x of unit mean
    square; zero at the start without ``random``.

    The scale is a factor, not the size of W's first values: an optimiser whose steps do not depend on the size of
    gradients (Adam) would otherwise multiply a small V within some steps. Source: mathematics §2.
    """

    def __init__(self, features: int, heads: int, *, scale: float = 1.0, random: bool = True):
        super().__init__()
        # A buffer where it is not 1: weights of 0.1, in which the scale lay, are then refused and not scaled twice.
        self.register_buffer("scale", None if scale == 1.0 else torch.tensor(scale, dtype=torch.get_default_dtype()))
        self.weight = nn.Parameter(torch.zeros(heads, features))
        if random:
            nn.init.normal_(self.weight, std=features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        (projected,) = project(x, self)
        return projected


def project(x: Tensor, *projections: Projection) -> tuple[Tensor, ...]:
    """Each projection of x, by one product, so that x is read once."""
    weights = [p.weight if p.scale is None else p.scale * p.weight for p in projections]
    projected = nn.functional.linear(x, weights[0] if len(weights) == 1 else torch.cat(weights))
    projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
    return projected.split([len(weight) for weight in weights], dim=-1)


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
            self.decay = Projection(context.width, heads, random=False)
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
