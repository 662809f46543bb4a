"""Options of the baseline layers. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from attrs import field, frozen, validators

from muse_core.options.heads import check_groups, indivisible


@frozen(kw_only=True)
class AttentionOptions:
    """Causal multi-head softmax attention within a document."""

    heads: int = field(default=4, validator=validators.ge(1))
    """Query heads H; they divide the width."""
    key_value_heads: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    """Heads of keys and values; each serves heads / key_value_heads queries. Default: as many as queries."""
    window: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    """A token sees itself and the window − 1 tokens before it; state is then of fixed size. Default: all."""
    rotary: bool = True
    """Rotate queries and keys by their position in the document."""
    rotary_base: float = field(default=10_000.0, validator=validators.gt(1.0))
    """Wavelengths of the rotation run from 2π to about 2π × this, in tokens."""
    convolution: int = field(default=0, validator=[validators.ge(0), validators.le(64)])
    """Tokens that a short causal convolution over queries, keys and values spans; 0 leaves it out."""
    query_key_norm: bool = False
    """Divide queries and keys of a head by their root mean square, times a learned gain, before they are rotated."""

    def __attrs_post_init__(self) -> None:
        check_groups(self.heads, self.key_value_heads)

    def horizon(self) -> float:
        """Tokens back that it reads."""
        return self.window or math.inf

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from indivisible(recipe, self.heads, rotary=self.rotary)


@frozen(kw_only=True)
class ConvolutionOptions:
    """A short causal convolution of every channel by itself, within a document."""

    span: int = field(default=4, validator=[validators.ge(1), validators.le(64)])
    """Tokens it spans, the present one among them."""


@frozen(kw_only=True)
class FeedForwardOptions:
    """Two maps with a nonlinearity between, token by token."""

    multiple: float = field(default=8 / 3, validator=validators.gt(0.0))
    """Hidden units as a multiple of the width, rounded to a multiple of 8."""
    activation: Literal["swiglu", "gelu", "relu-squared"] = "swiglu"
    """swiglu has a third map, a gate; 8/3 then costs as many parameters as 4 without."""
    convolution: int = field(default=0, validator=[validators.ge(0), validators.le(64)])
    """Tokens that a short causal convolution of what the layer reads spans; it begins as what it reads, with noise. 0
    leaves it out. A layer "convolution" before this one is the same with a norm and an update of its own."""

    def undivided(self) -> str | None:
        """Tokens of a row may lie on several processes, where each is treated by itself."""
        return "with a convolution reads the tokens before" if self.convolution else None


@frozen(kw_only=True)
class MlpRouterOptions:
    """The best few experts by learned scores of the token."""

    top_k: int = field(default=2, validator=[validators.ge(1), validators.le(64)])
    """Experts of a token."""
    hidden: int = field(default=0, validator=[validators.ge(0), validators.le(65_536)])
    """Hidden units between token and scores; 0 is one linear map."""

    def refuse(self, experts: int) -> str | None:
        """Why it cannot choose among this many."""
        return None if self.top_k <= experts else (
            f"top_k = {self.top_k} exceeds the number of experts, {experts} - lower it or raise experts"
        )
