"""Options of the published mixers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from attrs import field, frozen, validators

from muse_core.component import Requirement

SIZE = [validators.ge(1), validators.le(65_536)]
HEADS = [validators.ge(1), validators.le(1024)]


@frozen(kw_only=True)
class GatedDeltaNetOptions:
    """Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024): the delta rule with Mamba-2's decay, short convolutions and a
    gated norm; sizes and first values as in fla's layer."""

    heads: int = field(default=6, validator=HEADS)
    """Number of memories H."""
    key_size: int | None = field(default=None, validator=validators.optional(SIZE))
    """Width K of keys and queries of a head. Default: 3/4 of the model's width over heads."""
    expand_value: float = field(default=2.0, validator=[validators.gt(0.0), validators.le(16.0)])
    """Width of a head's values, as a multiple of its keys'."""
    convolution: int = field(default=4, validator=[validators.ge(1), validators.le(16)])
    """Tokens that the short convolution over queries, keys and values spans."""
    gate: bool = True
    """Multiply what is read, normalised, by SiLU of a projection of the token."""
    negative_eigenvalues: bool = False
    """β = 2σ instead of σ, so that a write may turn around what its key stood for (Grazzi et al. 2024)."""

    def key_width(self, width: int) -> int:
        """K for a model of this width. Raises ValueError where it is not a whole number."""
        if self.key_size is None and 3 * width % (4 * self.heads):
            raise ValueError(f"3/4 of the width {width} over heads = {self.heads} is not a whole number; give key_size")
        return self.key_size or 3 * width // (4 * self.heads)

    def value_width(self, width: int) -> int:
        """M for a model of this width."""
        return max(1, round(self.expand_value * self.key_width(width)))

    def problems(self, recipe: Any) -> Iterable[str]:
        width = getattr(recipe.model.options, "width", None)
        if width is not None:
            try:
                self.key_width(width)
            except ValueError as error:
                yield str(error)


@frozen(kw_only=True)
class ChannelDeltaOptions:
    """The delta rule with a decay for every channel of the keys."""

    heads: int = field(default=4, validator=HEADS)
    """Number of memories H. The authors' heads are 128 wide."""
    key_size: int | None = field(default=None, validator=validators.optional(SIZE))
    """Width K of keys and queries of a head. Default: the model's width over heads."""
    expand_value: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(16.0)])
    """Width of a head's values, as a multiple of its keys'."""
    convolution: int = field(default=4, validator=[validators.ge(1), validators.le(16)])
    """Tokens that the short convolution over queries, keys and values spans."""
    negative_eigenvalues: bool = False
    """2σ instead of σ is the rate of what is taken out, and where it has no other, of what is put in."""

    def key_width(self, width: int) -> int:
        """K for a model of this width. Raises ValueError where it is not a whole number."""
        return self.key_size or divided(width, self.heads)

    def value_width(self, width: int) -> int:
        """M for a model of this width."""
        return max(1, round(self.expand_value * self.key_width(width)))

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from indivisible(recipe, self.heads if self.key_size is None else 1)


@frozen(kw_only=True)
class KdaOptions(ChannelDeltaOptions):
    """Kimi Delta Attention (Kimi Team 2025): the delta rule with a decay for every channel of the keys; sizes as in
    fla's layer, first values too but for those of projections."""

    decay: Literal["own", "signal"] = "own"
    """own: a channel's decay is of the token, by a product of low rank. signal: it is Γ of the signal ``decay`` of an
    earlier layer, which the potentials V − iΓ of a resolvent make; each of its heads serves equally many channels, or a
    channel has the mean of equally many heads; below 0 it is taken for 0."""
    kernel: Literal["own", "fla"] = "own"
    """fla: on a GPU in bfloat16 the kernels of fla-core, elsewhere and in other precisions ours."""

    def requires(self) -> tuple[Requirement, ...]:
        return (Requirement("decay"),) if self.decay == "signal" else ()


@frozen(kw_only=True)
class GatedDeltaNet2Options(ChannelDeltaOptions):
    """Gated DeltaNet-2 (Hatamizadeh, Choi, Kautz 2026): Kimi Delta Attention with a gate for every channel of the keys,
    of what is taken out, and one for every channel of the values, of what is put in; sizes as in its authors' layer."""


@frozen(kw_only=True)
class GlaOptions:
    """Gated linear attention (Yang and others 2023); sizes as in fla's layer."""

    heads: int = field(default=4, validator=HEADS)
    """Number of memories H."""
    expand_key: float = field(default=0.5, validator=[validators.gt(0.0), validators.le(16.0)])
    """Width of all keys, as a multiple of the model's."""
    expand_value: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(16.0)])
    """Width of all values, as a multiple of the model's."""
    rank: int = field(default=16, validator=[validators.ge(1), validators.le(4096)])
    """Rank of the map from a token to its decays."""
    kernel: Literal["own", "fla"] = "own"
    """fla: on a GPU in bfloat16 the kernels of fla-core, elsewhere and in other precisions ours."""

    def key_width(self, width: int) -> int:
        """K for a model of this width. Raises ValueError where it is not a whole number."""
        return divided(round(self.expand_key * width), self.heads)

    def value_width(self, width: int) -> int:
        """M for a model of this width. Raises ValueError where it is not a whole number."""
        return divided(round(self.expand_value * width), self.heads)

    def problems(self, recipe: Any) -> Iterable[str]:
        width = getattr(recipe.model.options, "width", None)
        for name in () if width is None else ("expand_key", "expand_value"):
            share = getattr(self, name)
            if not round(share * width):
                yield nothing_left(name, share, width)
            elif round(share * width) % self.heads:
                yield f"heads is {self.heads}, which does not divide {round(share * width)}, {share:g} of the width"


@frozen(kw_only=True)
class Rwkv7Options:
    """The time mixing of RWKV-7 (Peng and others 2025), with the ranks and first values of its authors."""

    heads: int = field(default=4, validator=HEADS)
    """Number of memories H. The authors' heads are 64 wide."""
    kernel: Literal["own", "fla"] = "own"
    """fla: on a GPU in bfloat16 the kernels of fla-core, elsewhere and in other precisions ours."""

    def head_width(self, width: int) -> int:
        """K for a model of this width. Raises ValueError where it is not a whole number."""
        return divided(width, self.heads)

    def ranks(self, width: int) -> tuple[int, int]:
        """Of decays and rates, and of the gate."""
        share = self.head_width(width) / 64
        return _rank(2.5 * width**0.5 * share), _rank(5 * width**0.5)

    def value_rank(self, width: int) -> int:
        """Of the mixture with the first layer's values."""
        return _rank(1.7 * width**0.5 * self.head_width(width) / 64)

    def provides(self, width: int) -> dict[str, tuple[int, ...]]:
        """``first_value``: the values of the first layer of the kind."""
        return {"first_value": (width,)}

    def requires(self) -> tuple[Requirement, ...]:
        return (Requirement("first_value", optional=True),)

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from indivisible(recipe, self.heads)


@frozen(kw_only=True)
class StateSpaceOptions:
    """Sizes that the generations of Mamba have in common."""

    states: int = field(default=128, validator=SIZE)
    """State size S: the width of the keys and queries that all heads share."""
    head_size: int = field(default=64, validator=SIZE)
    """Width P of a head; all of expand times the width where that is less."""
    expand: float = field(default=2.0, validator=[validators.gt(0.0), validators.le(16.0)])
    """Width of all heads, as a multiple of the model's."""

    def inner(self, width: int) -> int:
        """Width of all heads for a model of this width."""
        return round(self.expand * width)

    def heads(self, width: int) -> int:
        """H for a model of this width. Raises ValueError where it is not a whole number."""
        return divided(self.inner(width), self.head_width(width))

    def head_width(self, width: int) -> int:
        """P for a model of this width."""
        return min(self.head_size, self.inner(width))


@frozen(kw_only=True)
class Mamba2Options(StateSpaceOptions):
    """Mamba-2 (Dao and Gu 2024) with the sizes and first values of its authors."""

    convolution: int = field(default=4, validator=[validators.ge(1), validators.le(64)])
    """Tokens that the short convolution spans."""

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from indivisible_heads(recipe, self)


@frozen(kw_only=True)
class Mamba3Options(StateSpaceOptions):
    """Mamba-3 (Lahoti and others 2026), one input and one output a head, with the sizes and first values of its
    authors."""

    rotated: float = field(default=0.5, validator=[validators.gt(0.0), validators.le(1.0)])
    """Share of the states that turn, two by two, as complex numbers."""

    def pairs(self) -> int:
        """How many pairs of states turn."""
        return int(self.rotated * self.states) // 2

    def problems(self, recipe: Any) -> Iterable[str]:
        if not self.pairs():
            yield f"rotated is {self.rotated:g}, which leaves no pair of {self.states} states to turn - choose more"
        yield from indivisible_heads(recipe, self)


@frozen(kw_only=True)
class RgLruOptions:
    """The recurrent block of Griffin (De and others 2024): a gated short convolution and, behind it, a diagonal
    recurrence with gates of the token."""

    expand: float = field(default=4 / 3, validator=[validators.gt(0.0), validators.le(16.0)])
    """Width R inside, as a multiple of the model's, rounded to a multiple of the heads."""
    heads: int = field(default=8, validator=HEADS)
    """Blocks of the matrices that make the gates."""
    convolution: int = field(default=4, validator=[validators.ge(1), validators.le(64)])
    """Tokens that the short convolution spans."""
    recurrence: bool = True
    """False leaves the gated convolution alone, the control of what the recurrence adds."""

    def inner(self, width: int) -> int:
        """R for a model of this width."""
        return self.heads * max(1, round(self.expand * width / self.heads))


def indivisible_heads(recipe: Any, options: StateSpaceOptions) -> Iterable[str]:
    """What is wrong where the width of a head does not divide that of all."""
    width = getattr(recipe.model.options, "width", None)
    if width is not None and not options.inner(width):
        yield nothing_left("expand", options.expand, width)
    elif width is not None and options.inner(width) % options.head_width(width):
        yield f"head_size is {options.head_size}, which does not divide {options.inner(width)}, expand times the width"


def nothing_left(name: str, share: float, width: int) -> str:
    """What is wrong where a multiple of the width rounds to none."""
    return f"{name} is {share:g}, which leaves nothing of the width {width} - choose more"


def divided(whole: int, parts: int) -> int:
    """whole over parts. Raises ValueError where that is not a whole number."""
    if whole % parts:
        raise ValueError(f"{parts} does not divide {whole}")
    return whole // parts


def indivisible(recipe: Any, heads: int) -> Iterable[str]:
    """What is wrong where the heads do not divide the width."""
    width = getattr(recipe.model.options, "width", None)
    if width is not None and width % heads:
        yield f"heads is {heads}, which does not divide the width {width} - choose a divisor"


def _rank(wanted: float) -> int:
    return max(32, round(wanted / 32) * 32)
