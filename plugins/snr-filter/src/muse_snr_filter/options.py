"""Options of the snr filter. Imports no torch."""

from __future__ import annotations

import attrs
from attrs import field, validators


@attrs.frozen(kw_only=True)
class SnrOptions:
    """Lets entries that do not stand out from the noise of the writes fade, and confirms those that do.

    Once a period each entry of the fast weights is compared with σ, what the same writes with random keys and values
    would have left there.
    """

    threshold: float = field(default=2.0, validator=[validators.gt(0.0), validators.le(100.0)])
    """Multiple of σ below which an entry counts as noise; 2 takes 95 % of pure noise."""
    gamma_boost: float = field(default=2.0, validator=[validators.ge(1.0), validators.le(100.0)])
    """Entries below forget as if Γ had been this many times larger over the period; 1 leaves them alone."""
    rate_boost: float = field(default=1.5, validator=[validators.ge(1.0), validators.le(2.0)])
    """The period's net writes count this much for entries above, up to the largest entry of the head; 1 leaves them
    alone. At most 2, beyond which a delta-rule write of unit rate would overshoot."""
