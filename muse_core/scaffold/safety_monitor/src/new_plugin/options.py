"""Options of the monitor. Imports no torch."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """Skips a step whose largest gradient entry is far beyond what is usual in this run."""

    factor: float = field(default=20.0, validator=[validators.gt(1.0), validators.le(1e6)])
    """How many times the usual value is too much."""
    memory: float = field(default=0.95, validator=[validators.ge(0.0), validators.lt(1.0)])
    """Share of the usual value that survives one step."""
