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
        projected = nn.functional.linear(x, self.weight)
        return projected.to(torch.promote_types(projected.dtype, torch.float32))
