"""What optimizers and schedules are told when they are built. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from muse_core.recipe.schema import Train

Calls = Callable[..., Any]
"""``cuda_graph.RecordedCalls``: ``calls(function, read, written)`` is what ``function()`` returns, launched as one
where it is recorded. An optimiser whose ``step_recorded(calls)`` does what its ``step()`` does is asked for that in
steps whose passes are replayed."""

DECAYED = ("matrix", "embedding")
"""Roles of parameters with weight decay; vectors and dynamics have none."""


@attrs.frozen(kw_only=True)
class OptimizerContext:
    """What an optimizer learns besides its options."""

    learning_rate: float
    """Peak rate, ``train.learning_rate``."""
    weight_decay: float
    """Decoupled decay of the roles that are decayed, ``train.weight_decay``."""
    kernels: Any = None
    """The run's ``BoundKernels``, to ``bind`` an operation as layers do; None where an optimizer is built by itself."""

    def decays(self, role: str) -> bool:
        """Whether parameters of this role are decayed."""
        return role in DECAYED


@attrs.frozen(kw_only=True)
class ScheduleContext:
    """What a schedule learns besides its options."""

    steps: int
    """Updates that the schedule spans: ``train.schedule_steps``, or else ``train.steps``."""
    warmup_steps: int
    """Steps of warm-up, ``train.warmup_steps``; may be more than ``steps``."""
    final_rate: float
    """Share of the peak rate at the last update of the span, ``train.final_rate``."""

    @classmethod
    def of(cls, train: Train) -> ScheduleContext:
        """As a recipe's table [train] says."""
        return cls(
            steps=train.schedule_steps or train.steps, warmup_steps=train.warmup_steps, final_rate=train.final_rate
        )

    def warming(self, updates: int) -> float | None:
        """Share of the peak rate while the linear warm-up lasts, (updates + 1) / warmup_steps; None after it."""
        return (updates + 1) / self.warmup_steps if updates < self.warmup_steps else None
