"""The second stage: whether the loss on the canary has risen. Imports no torch."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from muse_rollback.options import RollbackOptions
from muse_rollback.screen import MAD

BENDS = 5
"""Second differences of passed values whose scale gives the bound."""


class Canary:
    """Compares the loss on the same sequences with the last values that passed. The text is the same, so
    that the difference between batches cancels and only that of the weights is left.

    bound = max(floor, spread · ŵ), where ŵ = 1.4826 · median |second difference| / √3 is the scale of the change
    between two values about a curve that is nearly straight; first differences would take fast learning for noise.
    Source: reliability "Rollback".
    """

    def __init__(self, options: RollbackOptions):
        self.options = options
        self.passed: deque[float] = deque(maxlen=max(BENDS + 2, options.references))
        self.above_since: int | None = None
        """Step of the evaluation that first exceeded one bound; None when the last one passed."""

    @property
    def ready(self) -> bool:
        """Whether there are enough passed values to compare with."""
        return len(self.passed) >= self.options.references

    @property
    def reference(self) -> float:
        """The median of the last values or the last one, whichever is lower: while a model learns fast, the median
        lies so far above it that damage hides below."""
        return min(median(list(self.passed)[-self.options.references :]), self.passed[-1])

    @property
    def bound(self) -> float:
        """Nats above the reference that are no chance."""
        values = list(self.passed)
        bends = [abs(after - 2 * value + before) for before, value, after in zip(values, values[1:], values[2:])]
        return max(self.options.floor, self.options.spread * MAD * median(bends) / math.sqrt(3.0))

    def take(self, step: int, value: float, *, regular: bool, deciding: bool) -> str | None:
        """The canary's loss after ``step`` steps. Why the run is damaged, or None.

        regular: one of the evaluations at fixed distances, which become references. deciding: False while warming up,
        when any finite value passes.
        """
        if not math.isfinite(value):
            return f"the canary's loss is {value}"
        excess = value - self.reference if self.ready and deciding else 0.0
        bound = self.bound if self.ready and deciding else math.inf
        if excess <= bound:
            self.above_since = None
            if regular:
                self.passed.append(value)
            return None
        what = f"the canary's loss {value:.4f} is {excess:.4f} above its reference, the bound is {bound:.4f}"
        if excess > self.options.certain * bound:
            return what
        if self.above_since is None:
            self.above_since = step
            return None
        return what + f", twice since step {self.above_since}" if self.again(step) else None

    def again(self, step: int) -> bool:
        """Whether it is time for the second evaluation after one that exceeded the bound."""
        return self.above_since is not None and step - self.above_since >= self.options.apart

    def state_dict(self) -> dict[str, Any]:
        return {"passed": list(self.passed), "above_since": self.above_since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passed = deque(state["passed"], maxlen=self.passed.maxlen)
        self.above_since = state["above_since"]
