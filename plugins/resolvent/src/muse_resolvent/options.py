"""Options of the resolvent layer. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from attrs import field, frozen, validators

from muse_core.component import UsePotential


@frozen(kw_only=True)
class ResolventOptions:
    """Mixes tokens by the causal resolvent of a tridiagonal Hamiltonian with V − iΓ on its diagonal, per head."""

    heads: int = field(default=64, validator=[validators.ge(1), validators.le(65_536)])
    """Number of Hamiltonians H, each with its own energy and hopping."""
    potential: tuple[UsePotential, ...] = ("non-hermitian",)
    """Terms of the diagonal, summed. None at all leaves the free lattice, the same for every text."""
    apply: bool = True
    """Apply the resolvent to values; otherwise only its diagonal θ is read."""
    value_size: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    """Values M of a head. Default: the model's width over heads, rounded down, and at least 1."""
    output: Literal["projection", "channels"] = "projection"
    """projection: values are W x, and an output matrix mixes what the heads read. channels: values are the layer's own
    input, width over heads channels a head, and channel d adds a_d Re y_d + b_d Im y_d: a filter of complex poles that
    depend on the text, at the cost of a short convolution."""
    initial_gain: float = field(default=0.1, validator=[validators.gt(0.0), validators.le(10.0)])
    """Standard deviation of a and b at the start."""
    phase: Literal["none", "increment", "shift"] = "none"
    """Which phase of det(H − z)/det(H⁰ − z) is read beside θ. increment: δ of the token. shift: also cos πξ and sin πξ
    of the spectral shift ξ, the sum of δ/π since the document started."""
    output_norm: bool = True
    """Normalise what the heads apply, over all of them."""
    gate: bool = True
    """Multiply what is applied by a gate of the token."""
    min_broadening: float = field(default=0.05, validator=validators.gt(0.0))
    """Smallest η = Im z; |θ| stays below its inverse. Only the sum Γ + η with the potentials' Γ acts on anything."""
    initial_broadening: tuple[float, float] = (0.06, 1.0)
    """Smallest and largest η at the start; those between are log-spaced and scattered over the energies. A fixed Γ is
    the same as an η that is larger by it."""
    added_broadening: tuple[float, float] | None = None
    """More η at the start, log-spaced from the first head to the last as `non-hermitian` spaces `initial_decay`: with
    the same bounds and `hermitian` in its place, every head starts at the same Γ + η."""

    def __attrs_post_init__(self) -> None:
        low, high = self.initial_broadening
        if not self.min_broadening < low <= high <= 100.0:
            raise ValueError(
                f"initial_broadening must be two numbers with min_broadening = {self.min_broadening} < smallest ≤ "
                f"largest ≤ 100, got {[low, high]}"
            )
        if self.added_broadening is not None and not 0.0 < self.added_broadening[0] <= self.added_broadening[1] <= 100:
            raise ValueError(
                f"added_broadening must be two numbers with 0 < first ≤ last ≤ 100, got {list(self.added_broadening)}"
            )
        if self.output == "channels" and (not self.apply or self.value_size is not None or self.phase != "none"):
            raise ValueError(
                'output = "channels" reads what is applied to the input\'s own channels - leave out apply, value_size '
                "and phase"
            )

    def problems(self, recipe: Any) -> Iterable[str]:
        width = getattr(recipe.model.options, "width", None)
        if self.output == "channels" and width is not None and width % self.heads:
            yield f"heads is {self.heads}, which does not divide the width {width} - choose a divisor"

    def undivided(self) -> str | None:
        """Why the tokens of a row cannot lie on several processes."""
        return None if self.phase == "none" else f'with phase = "{self.phase}" adds up phases along whole rows'

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self.gate and self.apply and self.output == "projection"

    def provides(self, width: int) -> dict[str, tuple[int, ...]]:
        """``theta``: Re θ and Im θ; ``broadening``: Γ + η, all that θ depends on; ``decay``: the potentials' share Γ, a
        rate that a memory can share; ``damped_potential``: V/(Γ + η), whose norm over a text bounds the Hilbert–Schmidt
        norm of |V|^½ (H − z)⁻¹ |V|^½; ``lyapunov``: −½ log|p θ²|, whose mean over tokens is the head's
        exponent; ``phase``: δ in radians; ``spectral_shift``: ξ; ``gate``: σ of the gate's pre-activation, how far open
        it is."""
        heads = self.heads
        found: dict[str, tuple[int, ...]] = {"theta": (heads, 2)}
        found |= dict.fromkeys(
            ("broadening", "damped_potential", "decay", "lyapunov", "phase", "spectral_shift"), (heads,)
        )
        return found | {"gate": (heads * self.value_width(width),)} if self.gated else found

    def value_width(self, width: int) -> int:
        """M for a model of this width; 0 when nothing is applied."""
        if not self.apply:
            return 0
        return self.value_size or max(1, width // self.heads)
