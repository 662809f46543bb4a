"""What the causality gate says where values are no finite numbers: nothing can be said of what those depend on, since
every comparison with one fails."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor


@attrs.frozen(kw_only=True)
class NotFinite:
    """A model that gives NaN or infinity for ordinary inputs."""

    consequence = "Nothing can be said of what they depend on, and training could not use them"

    layer: str
    """The first layer or router that gave them, ``the head`` when none did, ``the model`` where none was asked."""
    position: int
    """Earliest token whose outputs have them, or that a gradient belongs to."""
    how: str
    """How the model was called."""
    what: str = "values"
    """values | gradients"""

    def __str__(self) -> str:
        return (
            f"causality gate: {self.layer} gives {self.what} that are not finite, first at token {self.position} "
            f"(check: {self.how}) - look there for a division by zero, a root or logarithm of what is not positive, "
            "or an overflow"
        )


def not_finite(outputs: Tensor, said: Mapping[str, Mapping[str, Tensor]], how: str) -> NotFinite | None:
    """Of outputs (B, N, …) and the tensors that each layer gave for them, by name and in order; None where all outputs
    are finite numbers."""
    broken = (~outputs.isfinite()).flatten(2).any(-1).any(0)
    if not broken.any():
        return None
    layer = next(
        (name for name, values in said.items() if not all(bool(torch.isfinite(one).all()) for one in values.values())),
        "the head",
    )
    return NotFinite(layer=layer, position=int(broken.int().argmax()), how=how)
