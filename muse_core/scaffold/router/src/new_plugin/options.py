"""Options of the router and of the layer that asks it. Imports no torch."""

from __future__ import annotations

from attrs import field, frozen, validators
from muse_core.component import UseRouter


@frozen(kw_only=True)
class NewPluginOptions:
    """The experts of highest softmax score, weighted by it."""

    chosen: int = field(default=2, validator=[validators.ge(1), validators.le(64)])
    """Experts k of a token; at most as many as there are."""
    balance: float = field(default=0.01, validator=[validators.ge(0.0), validators.le(10.0)])
    """Weight of the loss that keeps the experts equally busy, per token."""


@frozen(kw_only=True)
class NewPluginExpertsOptions:
    """Feed-forward networks of which a router chooses some for every token."""

    experts: int = field(default=4, validator=[validators.ge(1), validators.le(1024)])
    """Number of networks E."""
    hidden: int = field(default=32, validator=[validators.ge(1), validators.le(65_536)])
    """Hidden units F of each."""
    router: UseRouter = "new-plugin"
    """Who chooses."""
