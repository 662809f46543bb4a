"""Options of the leaky average. Imports no torch."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import field, validators


@attrs.frozen(kw_only=True)
class LeakyAverageOptions:
    """Every head keeps a leaky average of what it read: a_t = k a_{t−1} + (1 − k) v_t, with its own learned k."""

    heads: int = field(default=4, validator=[validators.ge(1), validators.le(1024)])
    """Number of averages H; they divide the width."""
    spans: tuple[float, float] = (2.0, 64.0)
    """Tokens that the fastest and the slowest head average over at the start; those between are log-spaced."""

    def __attrs_post_init__(self) -> None:
        short, long = self.spans
        if not 1.0 < short <= long <= 1e6:
            raise ValueError(f"spans must be two lengths with 1 < shortest ≤ longest ≤ 1e6, got {[short, long]}")

    def problems(self, recipe: Any) -> list[str]:
        width = getattr(recipe.model.options, "width", self.heads)
        return [f"heads = {self.heads} does not divide the width {width}"] if width % self.heads else []
