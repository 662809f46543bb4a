"""Options of the initializers and positions. Imports no torch."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from attrs import field, frozen, validators


@frozen(kw_only=True)
class ZetaOptions:
    """Singular values ∝ 1/γ_i of the zeta zeros, random singular vectors, the Frobenius norm of what it replaces."""


@frozen(kw_only=True)
class OrthogonalOptions:
    """Control of zeta: the same with equal singular values."""


@frozen(kw_only=True)
class RandomSpectrumOptions:
    """Control of zeta: the same with random points in place of the zeros, as dense as they are but independent."""


@frozen(kw_only=True)
class ZetaPositionsOptions:
    """Adds sin(n ω_i) and cos(n ω_i) of the position n in the document, with learned amplitudes."""

    ignores_stream: ClassVar[bool] = True

    frequencies: Literal["zeta", "geometric", "random"] = "zeta"
    """zeta: ω_i = max_frequency γ_1/γ_i. geometric: wavelengths in equal ratios up to longest. random: as zeta with
    independent random points as dense as the zeros."""
    max_frequency: float = field(default=math.pi, validator=[validators.gt(0.0), validators.le(math.pi)])
    """Largest ω in radians per token. The longest wavelength of zeta frequencies is short: at π 32 tokens with 96 of
    them, inversely longer with a smaller one."""
    longest: float = field(default=10_000.0, validator=validators.gt(2.0))
    """Longest wavelength of geometric frequencies, in tokens."""
    scale: float = field(default=0.02, validator=[validators.gt(0.0), validators.le(100.0)])
    """Amplitude of every feature at the start; 0.02 is the deviation of the embeddings."""
