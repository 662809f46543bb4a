"""Options of the schedule."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """After the warm-up the learning rate falls with a power of the part of the steps that is left."""

    power: float = field(default=1.0, validator=[validators.ge(1.0), validators.le(10.0)])
    """The power; 1 is a straight line."""
