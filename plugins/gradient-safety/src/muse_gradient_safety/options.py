"""Options of the gradient-safety monitor. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs import field, validators


@attrs.frozen(kw_only=True)
class GradientSafetyOptions:
    """Decides what happens to a step whose gradients hold a NaN or an infinity, and names the parameter.

    The loop itself never applies a non-finite gradient; this monitor chooses between saving the finite part of the
    step and stopping, and keeps count.
    """

    policy: Literal["replace", "skip", "halt"] = "skip"
    """replace: zero the non-finite elements and take the step with the rest. skip: leave the step out. halt: end the
    run."""
    patience: int = field(default=3, validator=[validators.ge(1), validators.le(1000)])
    """Steps in a row with non-finite gradients after which the run goes back to a certified checkpoint, whether they
    were replaced or skipped."""
