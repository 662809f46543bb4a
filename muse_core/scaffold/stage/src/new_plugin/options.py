"""Options of the stage. Imports no torch."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """Next-token cross-entropy, with a penalty on the logarithm of the partition function."""

    weight: float = field(default=1e-4, validator=[validators.ge(0.0), validators.le(1.0)])
    """Weight of (log Z)², per token."""
    keep: tuple[str, ...] = ()
    """Patterns of parameters that stay what they are, as ``embedding.*``."""
