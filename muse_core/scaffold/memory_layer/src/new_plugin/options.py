"""Options of the memory layer. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """Every head writes keys and values into a matrix that decays, and reads it by queries."""

    heads: int = field(default=4, validator=[validators.ge(1), validators.le(1024)])
    """Number of matrices H; they divide the width."""
    rule: Literal["delta", "hebbian"] = "delta"
    """delta: a write replaces what was stored under its key. hebbian: it adds to it."""

    def problems(self, recipe: Any) -> Iterable[str]:
        width = getattr(recipe.model.options, "width", None)
        if width is not None and width % self.heads:
            yield f"heads = {self.heads} does not divide the width {width} - choose a divisor"
