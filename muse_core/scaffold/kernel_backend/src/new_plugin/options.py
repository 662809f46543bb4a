"""Options of the backend. Imports no torch."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class NewPluginOptions:
    """The diagonal of the causal resolvent, one token after another, in the precision of its arguments."""
