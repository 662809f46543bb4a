"""Options of the potential and the initializer. Imports no torch."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen, validators


@frozen(kw_only=True)
class PrimeBumpOptions:
    """A potential of the position alone: Gaussian bumps at the logarithms of prime powers, in x = log(1 + n).

    Its width ε narrows over the run. It has unit root mean square over the context, times a learned strength per head.
    """

    epsilon: tuple[float, float] = (0.1, 0.01)
    """ε, the square of the bumps' deviation in x, at the start and at the end of the run."""
    schedule: Literal["cosine", "linear", "exponential"] = "cosine"
    """How ε goes from one to the other."""
    max_power: int = field(default=3, validator=[validators.ge(1), validators.le(64)])
    """Largest exponent k of a prime power."""
    strength: float = field(default=0.1, validator=[validators.gt(0.0), validators.le(100.0)])
    """Root mean square of V over the context at the start, in units of the hopping."""
    context: int | None = field(default=None, validator=validators.optional([validators.ge(2), validators.le(65_536)]))
    """Positions that differ; those beyond read the last one's value. Default: the training length, at most 65,536.
    Every change of ε costs about as many exponentials as this number squared."""
    bumps: Literal["primes", "shuffled", "gaussian"] = "primes"
    """Controls: shuffled, the same weights and centres in random combination; gaussian, as many bumps of equal L² norm
    at random centres."""

    def __attrs_post_init__(self) -> None:
        if not all(1e-4 <= value <= 1.0 for value in self.epsilon):
            raise ValueError(f"epsilon must be two widths between 0.0001 and 1, got {list(self.epsilon)}")


@frozen(kw_only=True)
class PrimeBumpInitializerOptions:
    """Singular values ∝ log p · p^(−1/2−ε) at the lowest primes, random singular vectors, the Frobenius norm of what it
    replaces."""

    epsilon: float = field(default=0.0, validator=[validators.ge(0.0), validators.le(4.0)])
    """ε of the exponent."""
    integers: Literal["primes", "random"] = "primes"
    """random is the control: integers drawn independently, n with probability 1/log n, which are as dense as primes."""
