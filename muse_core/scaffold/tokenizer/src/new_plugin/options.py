"""Options of the tokenizer."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """A token for every byte, and one for each of the characters of several bytes that are common in training text."""

    characters: int = field(default=64, validator=[validators.ge(0), validators.le(60_000)])
    """Number of such characters at most."""
