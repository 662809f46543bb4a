"""Options of the layer. Imports no torch."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """A causal convolution of every channel over the last few tokens of the document."""

    span: int = field(default=4, validator=[validators.ge(2), validators.le(64)])
    """Tokens that it reaches over, the present one included."""
