"""Options of the resonance filter. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs import field, validators


@attrs.frozen(kw_only=True)
class ResonanceOptions:
    """Keeps what of the fast weights lies in a few strong modes of a fixed orthonormal basis, and removes the rest.

    Once a period the keys' axis of W is expanded in K modes; those of little energy beside the strongest are removed,
    by a soft mask.
    """

    threshold: float = field(default=0.1, validator=[validators.gt(0.0), validators.lt(1.0)])
    """Amplitude of a mode over that of the strongest mode of the head at which half of it is kept."""
    sharpness: float = field(default=8.0, validator=[validators.ge(1.0), validators.le(64.0)])
    """Exponent s of the mask 1 / (1 + (threshold / amplitude)^s)."""
    basis: Literal["zeta", "fourier", "random"] = "zeta"
    """zeta: plane waves at the zeta zeros, made orthonormal. Controls: fourier, plane waves at the whole numbers;
    random, a basis uniform over all of them."""
