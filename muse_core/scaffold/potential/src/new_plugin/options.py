"""Options of the potential. Imports no torch."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """V = bound · tanh(W x / bound), and a decay Γ = softplus(U x + c)."""

    bound: float = field(default=3.0, validator=[validators.gt(0.0), validators.le(100.0)])
    """Largest |V|, in units of the hopping."""
    initial_decay: float = field(default=0.05, validator=[validators.gt(0.0), validators.le(100.0)])
    """Γ at the start for x = 0, per token."""
