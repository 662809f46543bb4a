"""Options of the initializer. Imports no torch."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """Normal values of standard deviation gain / √(fan-in), drawn again beyond a cut."""

    gain: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(100.0)])
    """Root mean square of what a matrix makes of inputs of unit mean square, before the cut."""
    cut: float = field(default=2.0, validator=[validators.gt(0.0), validators.le(10.0)])
    """Largest magnitude, in standard deviations."""
