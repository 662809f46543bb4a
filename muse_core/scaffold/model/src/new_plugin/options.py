"""Options of the model. Imports no torch."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """Predicts the next token from the last few by one hidden layer."""

    width: int = field(default=64, validator=[validators.ge(1), validators.le(16_384)])
    """Width D of the embedding."""
    span: int = field(default=8, validator=[validators.ge(2), validators.le(64)])
    """Tokens S that it reads, the present one included."""
    hidden: int = field(default=256, validator=[validators.ge(1), validators.le(65_536)])
    """Hidden units."""
