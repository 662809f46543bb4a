"""Options of the potentials. Imports no torch."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen, validators

from muse_core.component import Requirement

SCALE = validators.and_(validators.gt(0.0), validators.le(100.0))


@frozen(kw_only=True)
class HermitianOptions:
    """V = W x without decay: the static Hamiltonian of Phase 1. The resolvent sees Γ + η only, so in a comparison with
    `non-hermitian` give the layer that one's `initial_decay` as `added_broadening`."""

    scale: float = field(default=0.1, validator=SCALE)
    """Root mean square of V at the start, in units of the hopping."""


@frozen(kw_only=True)
class NonHermitianOptions:
    """V = W x, and a decay Γ = base_decay + softplus(w·x + c) that makes the Hamiltonian dissipative. The resolvent
    sees only the sum of Γ and its own η: what Γ adds to a larger η is that it depends on the token."""

    scale: float = field(default=0.1, validator=SCALE)
    """Root mean square of V at the start, in units of the hopping."""
    base_decay: float = field(default=0.0, validator=validators.ge(0.0))
    """Γ that no head falls below; the same as a `min_broadening` of the layer that is larger by it."""
    initial_decay: tuple[float, float] = (0.001, 0.3)
    """softplus(c) of the first and the last head at the start; those between are log-spaced."""
    decay: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: Γ depends on the token and is learned. fixed: every head keeps its initial Γ, a shift of η."""

    def __attrs_post_init__(self) -> None:
        low, high = self.initial_decay
        if not 0.0 < low <= high <= 100.0:
            raise ValueError(f"initial_decay must be two rates with 0 < lowest ≤ highest ≤ 100, got {[low, high]}")


@frozen(kw_only=True)
class MemoryFeedbackOptions:
    """V = w·m, what an earlier memory layer answered before the token wrote; zero where no memory comes before."""

    scale: float = field(default=1.0, validator=SCALE)
    """Root mean square of V at the start for answers of unit mean square."""
    required: bool = False
    """Refuse a model in which no memory comes before; a block's ``at`` may leave out the first depth."""

    def requires(self) -> tuple[Requirement, ...]:
        return (Requirement("memory_before", optional=not self.required),)
