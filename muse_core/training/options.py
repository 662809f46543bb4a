"""Options of the core's optimizers and schedules. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import field, validators

DECAY = [validators.ge(0.0), validators.lt(1.0)]
"""A mean with decay 1 never moves, and its correction for the start divides by zero."""


@attrs.frozen(kw_only=True)
class AdamWOptions:
    """Adam with decoupled weight decay."""

    beta1: float = field(default=0.9, validator=DECAY)
    """Decay of the first moment."""
    beta2: float = field(default=0.95, validator=DECAY)
    """Decay of the second moment."""
    epsilon: float = field(default=1e-8, validator=validators.gt(0.0))
    """Added to the denominator."""


@attrs.frozen(kw_only=True)
class MuonOptions:
    """Orthogonalised momentum for hidden matrices, AdamW at ``train.learning_rate`` for everything else."""

    learning_rate: float = field(default=0.02, validator=validators.gt(0.0))
    """Rate of the matrices."""
    momentum: float = field(default=0.95, validator=DECAY)
    """Momentum of the matrices."""
    beta1: float = field(default=0.9, validator=DECAY)
    """AdamW's decay of the first moment."""
    beta2: float = field(default=0.95, validator=DECAY)
    """AdamW's decay of the second moment."""
    epsilon: float = field(default=1e-8, validator=validators.gt(0.0))
    """AdamW's addition to the denominator."""


@attrs.frozen(kw_only=True)
class CosineOptions:
    """Linear warm-up over ``train.warmup_steps``, then half a cosine down to ``train.final_rate`` at the last step."""


@attrs.frozen(kw_only=True)
class WarmupStableDecayOptions:
    """Linear warm-up over ``train.warmup_steps``, the peak rate, and a decay to ``train.final_rate`` at the end. Until
    the decay begins nothing depends on the length of the run, so that it can be made longer from there."""

    decay: float = field(default=0.2, validator=[validators.ge(0.0), validators.le(1.0)])
    """Share of the schedule's steps in which the rate decays; 0 keeps the peak to the end."""
    form: Literal["linear", "cosine", "root", "exponential"] = "linear"
    """How the rate falls with the part u of the decay that is done, from 1 to the final rate f. linear: 1 − (1 − f) u.
    cosine: half a cosine. root: 1 − (1 − f) √u (Hägele et al. 2024). exponential: f^u, which needs f > 0."""

    def problems(self, recipe: Any) -> list[str]:
        """What the recipe says besides that does not go with these options."""
        if self.form == "exponential" and recipe.train.final_rate == 0 and self.decay > 0:
            return ['form = "exponential" never reaches train.final_rate = 0 - give one above 0, or another form']
        return []
