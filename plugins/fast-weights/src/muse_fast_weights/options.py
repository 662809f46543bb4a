"""Options of the memory layer. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import attrs
from attrs import field, validators

from muse_core.component import Requirement, UseFilter, UsePotential

SIZE = [validators.ge(1), validators.le(65_536)]
MOST_BYTES = 4 * 2**30
"""Fast weights of one sequence in one layer, at most: kernels hold several."""
HAMILTONIANS = 64
"""Of ``mixing = "resolvent"``, at most, where a recipe names no number."""
BROADENING = (0.5, 4.0)
"""Smallest and largest η of its Hamiltonians at the start."""
MIN_BROADENING = 0.05
"""Smallest η that they can learn: |θ| stays below its inverse."""


@attrs.frozen(kw_only=True)
class FastWeightsOptions:
    """Fast weights W that tokens write (key → value) and read (query), and that forget at a rate of their own.

    hebbian: W_t = e^{g} W_{t−1} + β k vᵀ. delta: W_t = e^{g} (I − β k kᵀ) W_{t−1} + β k vᵀ, which replaces what a key
    stood for instead of adding to it. g = −Γ per token, keys of length 1.
    """

    rule: Literal["hebbian", "delta"] = "delta"
    """How a token writes."""
    heads: int = field(default=4, validator=[validators.ge(1), validators.le(1024)])
    """Number of separate memories H."""
    key_size: int | None = field(default=None, validator=validators.optional(SIZE))
    """Width K of keys and queries of a head. Default: the model's width over heads."""
    value_size: int | None = field(default=None, validator=validators.optional(SIZE))
    """Width M of values of a head. Default: the model's width over heads."""
    decay: Literal["own", "signal"] = "own"
    """own: every head learns its Γ. signal: Γ is the signal ``decay`` of an earlier layer of the model, averaged over
    its heads in equal groups; below 0 it is taken for 0."""
    decay_form: Literal["sum", "product"] = "sum"
    """How a head's own Γ is made of a token. sum: base_decay + softplus(w·x + c). product: base_decay +
    A softplus(w·x + c) with a learned A, drawn even in (0, 16), and softplus(c) log-even in (0.001, 0.1) at the start,
    as Gated DeltaNet has it; ``initial_decay`` is then not read."""
    initial_decay: tuple[float, float] = (0.0005, 0.1)
    """Γ per token of the slowest and the fastest head at the start; those between are log-spaced. 0.0005 remembers
    2000 tokens."""
    base_decay: float = field(default=0.0, validator=validators.ge(0.0))
    """Γ that no head falls below, added to the learned part."""
    initial_rate: float | None = field(
        default=None, validator=validators.optional([validators.gt(0.0), validators.lt(1.0)])
    )
    """Mean β at the start, of every head, below ``most_rate``. Default: 1/2, half of ``most_rate`` where that is less,
    and under the delta rule with a Γ of its own K times the head's first Γ where that is less, so that what others
    write erases an association no sooner than it decays."""
    strength: Literal["own", "theta"] = "own"
    """own: β is of the token alone. theta: β times (Γ + η) Im θ of an earlier resolvent (its signals ``broadening`` and
    ``theta``, means over equal groups of its heads), from 0 to 1: tokens at a resonance write, others hardly."""
    most_rate: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(2.0)])
    """Largest β. Above 1 the delta rule may turn what a key stood for around (an eigenvalue of 1 − β below 0)."""
    writes: int = field(default=1, validator=[validators.ge(1), validators.le(2)])
    """Writes of a token, one after the other: 2 has keys, values and β of its own for the second, so that the weights
    change by a product of two maps I − β k kᵀ. Twice as many tokens go through the kernel."""
    convolution: int = field(default=4, validator=[validators.ge(0), validators.le(64)])
    """Tokens that a short causal convolution over queries, keys and values spans; 0 leaves it out. With mixing =
    "resolvent" there is none, and another number is refused."""
    taps: Literal["identity", "uniform"] = "uniform"
    """The convolution's first taps. uniform: all between −1/√span and 1/√span. identity: the present token passes,
    earlier ones start small. Not read with mixing = "resolvent"."""
    mixing: Literal["convolution", "resolvent"] = "convolution"
    """What mixes a channel of queries, keys and values with its earlier tokens, behind the projections and before SiLU.
    convolution: the short one. resolvent: in its place, on the same projections, the causal resolvent of tridiagonal
    Hamiltonians with the potentials' V − iΓ on the diagonal, y_i = θ_i (x_i − l y_{i−1}); a Re y + b Im y goes on, two
    gains for each channel. At the start that is the present token and what decays of those before it."""
    hamiltonians: int | None = field(default=None, validator=validators.optional(SIZE))
    """Number G of the resolvent's Hamiltonians, each for as many neighbouring channels. Must divide the H (2K + M)
    channels. Default: their largest divisor of at most 64. Read with mixing = "resolvent" alone."""
    potential: tuple[UsePotential, ...] = ()
    """Terms of the resolvent's diagonal, summed. None at all leaves the free lattice, the same for every text. Read
    with mixing = "resolvent" alone."""
    initial_broadening: tuple[float, float] = BROADENING
    """Smallest and largest η = Im z of the resolvent at the start; those between are log-spaced. A token's share falls
    with every further one to at most 0.78 of it where η is 0.5, and to 0.24 where it is 4. Read with mixing =
    "resolvent" alone."""
    rotation: Literal["none", "positions", "spectral-shift", "potential"] = "none"
    """Angle by which pairs of a query's and a key's entries turn, times a learned frequency of the pair that starts
    between 1 and 1/1000. positions: the token's position in the document. spectral-shift: π ξ of an earlier resolvent
    (its signal ``spectral_shift``, means over equal groups of its heads, one a memory head), so that the distance
    between two tokens is what the text between them shifted the spectrum. potential: the sum of w·x + c over the tokens
    so far, so that weights turn while they decay (e^{g + iωV})."""
    output_norm: bool = True
    """Normalise what each head reads, before the gate."""
    norm_epsilon: float = field(default=1e-6, validator=[validators.gt(0.0), validators.le(1.0)])
    """Added to the mean square that the norm divides by; without output_norm not read. fla's Gated DeltaNet has 1e-5 K
    for queries of length 1, as they are here."""
    gate: bool = True
    """Multiply what is read by a gate of the token."""
    gate_activation: Literal["silu", "sigmoid"] = "silu"
    """The gate of its pre-activation z: z σ(z), computed with the norm in one pass, or σ(z), by operations of its own
    behind the norm."""
    period: int = field(default=64, validator=[validators.ge(1), validators.le(1_048_576)])
    """Tokens between two applications of the filters, on the grid of absolute positions."""
    filters: tuple[UseFilter, ...] = ()
    """Filters of the fast weights, applied in this order at the end of every period."""

    def undivided(self) -> str | None:
        """Why the tokens of a row cannot lie on several processes."""
        if self.filters:
            return "applies filters to the weights of whole rows, one period after the other"
        if self.rotation == "spectral-shift":
            return 'with rotation = "spectral-shift" reads phases of whole rows'
        if self.writes > 1:
            return "with writes = 2 has two writes for every token"
        if self.rotation == "potential":
            return 'with rotation = "potential" adds up angles along whole rows'
        return None

    def __attrs_post_init__(self) -> None:
        slow, fast = self.initial_decay
        if not 0.0 < slow <= fast <= 10.0:
            raise ValueError(f"initial_decay must be two rates with 0 < slowest ≤ fastest ≤ 10, got {[slow, fast]}")
        if self.initial_rate is not None and self.initial_rate >= self.most_rate:
            raise ValueError(f"initial_rate = {self.initial_rate:g} must be below most_rate = {self.most_rate:g}")
        if self.writes > 1 and (self.rotation != "none" or self.filters):
            raise ValueError("writes = 2 takes neither a rotation nor filters - leave them out, or writes at 1")
        if self.gate_activation != "silu" and not self.gate:
            raise ValueError(
                f'gate_activation = "{self.gate_activation}" without a gate - set gate = true, or leave it out'
            )
        self._check_mixing()

    def _check_mixing(self) -> None:
        if self.mixing == "resolvent":
            low, high = self.initial_broadening
            if not MIN_BROADENING < low <= high <= 100.0:
                raise ValueError(
                    f"initial_broadening must be two numbers with {MIN_BROADENING} < smallest ≤ largest ≤ 100, got "
                    f"{[low, high]}"
                )
            if self.writes > 1:
                raise ValueError('writes = 2 has convolutions alone - set mixing = "convolution", or writes = 1')
            if self.convolution != 4:
                raise ValueError(
                    'convolution is read with mixing = "convolution" alone - set that, or leave convolution out'
                )
            return
        given = {
            "hamiltonians": self.hamiltonians is not None,
            "potential": bool(self.potential),
            "initial_broadening": self.initial_broadening != BROADENING,
        }
        name = next((name for name, is_given in given.items() if is_given), None)
        if name is not None:
            raise ValueError(
                f'{name} is read with mixing = "resolvent" alone - set mixing = "resolvent", or leave {name} out'
            )

    def provides(self, width: int) -> dict[str, tuple[int, ...]]:
        """``memory_before``: W_{t−1}ᵀ q_t, what the memory answered before the token wrote. ``gate``: σ of the gate's
        pre-activation, how far open it is. With two writes a token there is no ``memory_before``."""
        found: dict[str, tuple[int, ...]] = {}
        if self.writes == 1:
            found["memory_before"] = (self.heads, self.value_width(width))
        return found | {"gate": (self.heads * self.value_width(width),)} if self.gate else found

    def horizon(self) -> float | None:
        """Tokens back that its slowest head reaches at the start; None where that is a signal's or is drawn."""
        own = self.decay == "own" and self.decay_form == "sum"
        return 1 / (self.initial_decay[0] + self.base_decay) if own else None

    def requires(self) -> tuple[Requirement, ...]:
        needed = ("decay",) if self.decay == "signal" else ()
        if self.rotation == "spectral-shift":
            needed += ("spectral_shift",)
        if self.strength == "theta":
            needed += ("theta", "broadening")
        return tuple(map(Requirement, needed))

    def problems(self, recipe: Any) -> Iterable[str]:
        length = recipe.train.sequence_length
        if self.filters and self.period >= length:
            yield (
                f"period is {self.period} but sequences have {length} tokens, so the filters would never act on what "
                f"is read - use a period below train.sequence_length or leave the filters out"
            )
        width = getattr(recipe.model.options, "width", None)
        if self.key_size is not None and self.value_size is not None:
            held = 4 * self.heads * self.key_size * self.value_size
            if held > MOST_BYTES:
                yield (
                    f"fast weights of {self.heads} heads of {self.key_size} × {self.value_size} would take "
                    f"{held / 2**30:,.1f} GiB for every sequence - lower heads, key_size or value_size"
                )
        sizes = (self.key_size, self.value_size)
        if width is not None and None in sizes and width % self.heads:
            yield (
                f"heads is {self.heads}, which does not divide the width {width} - choose a divisor or give key_size "
                f"and value_size"
            )
        elif width is not None and self.mixing == "resolvent":
            channels = self.channels(width)
            if channels % self.groups(channels):
                yield (
                    f"hamiltonians is {self.hamiltonians}, which does not divide the {channels} channels of queries, "
                    f"keys and values - choose a divisor, or leave it out"
                )

    def key_width(self, width: int) -> int:
        """K for a model of this width."""
        return self.key_size or self._share(width)

    def value_width(self, width: int) -> int:
        """M for a model of this width."""
        return self.value_size or self._share(width)

    def channels(self, width: int) -> int:
        """All channels of queries, keys and values, H (2K + M), for a model of this width."""
        return self.heads * (2 * self.key_width(width) + self.value_width(width))

    def groups(self, channels: int) -> int:
        """G for that many channels."""
        return self.hamiltonians or next(n for n in range(min(HAMILTONIANS, channels), 0, -1) if channels % n == 0)

    def _share(self, width: int) -> int:
        if width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide the width {width}; give key_size and value_size")
        return width // self.heads
