"""Options of the optimizer. Imports no torch."""

from __future__ import annotations

from attrs import field, frozen, validators

DECAY = [validators.ge(0.0), validators.lt(1.0)]


@frozen(kw_only=True)
class NewPluginOptions:
    """Lion (Chen et al. 2023): steps of one size in the direction of a running mean of the gradient."""

    beta1: float = field(default=0.9, validator=DECAY)
    """Share of the running mean in the direction of a step."""
    beta2: float = field(default=0.99, validator=DECAY)
    """Decay of the running mean."""
