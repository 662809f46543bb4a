"""Options of windows, persistent memory, retrieval by projected queries, and the block. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import field, frozen, validators

HEADS = [validators.ge(1), validators.le(1024)]


@frozen(kw_only=True)
class WindowOptions:
    """What every layer with a window of attention has."""

    heads: int = field(default=4, validator=HEADS)
    """Query heads H of the attention; they divide the width."""
    key_value_heads: int | None = field(default=None, validator=validators.optional(HEADS))
    """Heads of keys and values; each serves heads / key_value_heads queries. Default: as many as queries."""
    window: int = field(default=128, validator=[validators.ge(1), validators.le(1_048_576)])
    """A token sees itself and the window − 1 tokens before it, within its document."""
    persistent: int = field(default=16, validator=[validators.ge(0), validators.le(65_536)])
    """Learned tokens that every position sees besides: keys and values per head, without a position."""
    rotary: bool = True
    """Rotate queries and keys by their position in the document."""
    rotary_base: float = field(default=10_000.0, validator=validators.gt(1.0))
    """Wavelengths of the rotation run from 2π to about 2π × this, in tokens."""
    convolution: int = field(default=0, validator=[validators.ge(0), validators.le(64)])
    """Tokens that a short causal convolution over queries, keys and values spans; 0 leaves it out."""
    query_key_norm: bool = True
    """Divide queries and keys of a head by their root mean square, times a learned gain, before they are rotated."""

    def __attrs_post_init__(self) -> None:
        if self.heads % (self.key_value_heads or self.heads):
            raise ValueError(f"heads = {self.heads} is not a multiple of key_value_heads = {self.key_value_heads}")

    def problems(self, recipe: Any) -> Iterable[str]:
        width, length = getattr(recipe.model.options, "width", None), recipe.train.sequence_length
        if self.window >= length:
            yield (
                f"window is {self.window} but sequences have {length} tokens, so nothing would be outside it - use a "
                f"window below train.sequence_length, or the layer attention"
            )
        if width is not None and width % self.heads:
            yield f"heads is {self.heads}, which does not divide the width {width} - choose a divisor"
        elif width is not None and self.rotary and width // self.heads % 2:
            yield (
                f"rotary positions turn pairs of numbers, but width {width} over {self.heads} heads is the odd "
                f"{width // self.heads} - choose other heads or rotary = false"
            )


@frozen(kw_only=True)
class SlidingWindowOptions(WindowOptions):
    """Softmax attention within a document over a sliding window and learned persistent tokens."""

    def horizon(self) -> float:
        """Tokens back that it reads."""
        return self.window
