"""Options of the filter. Imports no torch."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """Scales a head's weights down when they outgrow their usual size in the document."""

    factor: float = field(default=1.5, validator=[validators.ge(1.0), validators.le(100.0)])
    """Largest size, as a multiple of the usual one."""
    memory: float = field(default=0.9, validator=[validators.ge(0.0), validators.lt(1.0)])
    """Share of the usual size that survives one period; the rest comes from the period's own size."""
