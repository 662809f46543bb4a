"""The map from features to a potential per head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """x (…, F) → W x (…, H) in fp32 at least, of root mean square ``scale`` at the start for x of unit mean square."""

    def __init__(self, features: int, heads: int, *, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, features))
        nn.init.normal_(self.weight, std=scale * features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        (projected,) = project(x, self)
        return projected


def project(x: Tensor, *projections: Projection) -> tuple[Tensor, ...]:
    """Each projection of x, by one product, so that x is read once."""
    weights = [projection.weight for projection in projections]
    projected = nn.functional.linear(x, weights[0] if len(weights) == 1 else torch.cat(weights))
    projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
    return projected.split([len(weight) for weight in weights], dim=-1)
