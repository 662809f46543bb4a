"""Options of trace attention. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen, validators

from muse_core.component import Requirement
from muse_core.options.heads import check_groups, indivisible

REMEDY = 'put a resolvent before it, or set bound = "learned" or a number'


@frozen(kw_only=True)
class TraceAttentionOptions:
    """Causal multi-head attention within a document whose rows are scaled after the softmax, so that the
    Hilbert–Schmidt norm of the kernel of every prefix stays below a bound b_t."""

    heads: int = field(default=4, validator=[validators.ge(1), validators.le(1024)])
    """Query heads H; they divide the width."""
    key_value_heads: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    """Heads of keys and values; each serves heads / key_value_heads queries. Default: as many as queries."""
    window: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    """A token sees itself and the window − 1 tokens before it; state is then of fixed size. Default: all."""
    rotary: bool = True
    """Rotate queries and keys by their position in the document."""
    rotary_base: float = field(default=10_000.0, validator=validators.gt(1.0))
    """Wavelengths of the rotation run from 2π to about 2π × this, in tokens."""
    query_key_norm: bool = False
    """Divide queries and keys of a head by their root mean square, times a learned gain, before they are rotated."""
    bound: Literal["theory", "learned"] | float = field(default="learned")
    """theory: b_t = factor × ‖V/(Γ + η)‖₂ over the document's tokens so far, of the nearest earlier resolvent; root
    mean squares of equal groups of its heads, one an attention head, or of all of them where they do not divide.
    learned: a number c of each head, times what `growth` says. A number: that c."""
    factor: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(1e6)])
    """Multiplies the bound of the theory."""
    initial_bound: float = field(default=0.5, validator=[validators.gt(0.0), validators.le(1e6)])
    """A learned c at the start."""
    growth: Literal["none", "harmonic", "linear"] = "linear"
    """What c is multiplied by at the t-th token of a document. none: 1, the same bound for every prefix. harmonic: the
    root of 1 + 1/2 + … + 1/t, the least norm of a causal softmax. linear: √t, so that c² is a row's share, as
    V²/(Γ + η)² is in the theory."""
    knee: float = field(default=0.5, validator=[validators.ge(0.0), validators.lt(1.0)])
    """Share of b² that is used before rows are scaled; beyond, the scale falls smoothly."""

    def __attrs_post_init__(self) -> None:
        check_groups(self.heads, self.key_value_heads)
        if not isinstance(self.bound, str) and not 0.0 < self.bound <= 1e6:
            raise ValueError(f'bound must be "theory", "learned" or a number above 0 and at most 1e6, got {self.bound}')

    def requires(self) -> tuple[Requirement, ...]:
        return (Requirement("damped_potential", remedy=REMEDY),) if self.bound == "theory" else ()

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from indivisible(recipe, self.heads, rotary=self.rotary)

    @staticmethod
    def examples(folder: Path) -> Iterable[dict[str, Any]]:
        """A variant that a list of single options does not reach."""
        yield {"bound": 0.3, "growth": "none", "window": 5, "key_value_heads": 2}
