"""Moving averages that scale features: constant within a step, updated after it from its reduced measures.

Letters: B batch rows, N tokens, F features, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Moving(nn.Module):
    """Values (F, L) that follow what steps measure. The first steps are averaged evenly, so that the start is forgotten
    at once; later ones with weight 1 − decay."""

    def __init__(self, start: Tensor, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("values", start)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.names = [f"{self.word}_{row}_{column}" for row in range(len(start)) for column in range(start.shape[1])]

    word = "value"

    def named(self, values: Tensor) -> dict[str, Tensor]:
        """(F, L) as measures."""
        return dict(zip(self.names, values.flatten().unbind()))

    @torch.no_grad()
    def follow(self, metrics: Mapping[str, float]) -> None:
        """Take up a step; one that measured nothing, or nothing finite, is passed over."""
        seen = [metrics.get(name, math.nan) for name in self.names]
        if not all(map(math.isfinite, seen)):
            return
        self.steps += 1
        rate = (1.0 / self.steps).clamp(min=1 - self.decay)
        now = torch.tensor(seen, dtype=self.values.dtype).view_as(self.values)
        now = now.to(self.values.device, non_blocking=True)  # does not wait for the optimiser's kernels
        self.values.lerp_(now, rate.to(now.dtype))


class Quantiles(Moving):
    """Running quantiles of F features at L levels; a call gives the bin (B, N, F) of each feature, 0 to L. Before the
    first step they are those of normal distributions with the ``expected`` means and deviations."""

    word = "edge"

    def __init__(self, expected: Sequence[tuple[float, float]], levels: Sequence[float], decay: float):
        mean, deviation = torch.tensor(expected)[..., None].unbind(1)
        super().__init__(mean + deviation * torch.special.ndtri(torch.tensor(levels)), decay)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x.detach()[..., None] > self.values).sum(-1)

    def measured(self, x: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
        """The batch's own quantiles of x (B, N, F) over valid tokens, for ``follow``."""
        levels, x = self.levels.to(x.dtype), x.detach()
        if valid is None:
            return self.named(torch.quantile(x.flatten(0, 1), levels, dim=0).T)
        x = x.masked_fill(~valid[..., None], math.nan)
        return self.named(torch.nanquantile(x.flatten(0, 1), levels, dim=0).T)


class Standardised(Moving):
    """Running mean and mean square of F features; a call gives features of zero mean and unit deviation (B, N, F).
    Before the first step they are the ``expected`` means and deviations."""

    word = "moment"

    def __init__(self, expected: Sequence[tuple[float, float]], decay: float):
        mean, deviation = torch.tensor(expected).unbind(-1)
        super().__init__(torch.stack((mean, mean.square() + deviation.square()), dim=-1), decay)

    def forward(self, x: Tensor) -> Tensor:
        mean, square = self.values.to(x.dtype).unbind(-1)
        return (x - mean) / (square - mean.square()).clamp(min=1e-6).sqrt()

    def measured(self, x: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
        """The batch's own moments of x (B, N, F) over valid tokens, for ``follow``."""
        weight = torch.ones_like(x[..., :1]) if valid is None else valid[..., None].to(x.dtype)
        sums = [(power * weight).sum((0, 1)) for power in (x.detach(), x.detach().square())]
        return self.taken(torch.stack(sums, dim=-1), weight.sum().clamp(min=1))

    def taken(self, sums: Tensor, count: Tensor | int) -> dict[str, Tensor]:
        """Sums over ``count`` tokens (F, 2) of x and its square, as measures."""
        return self.named(sums / count)
