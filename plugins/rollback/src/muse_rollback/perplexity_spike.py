"""The monitor ``perplexity-spike``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from muse_core.contracts import Action, Monitor, Verdict
from muse_core.training.monitor_context import MonitorContext
from muse_rollback.options import PerplexitySpikeOptions

ACTIONS = {"warn": Action.CONTINUE, "skip": Action.SKIP, "rollback": Action.ROLLBACK}


class Average:
    """The rule itself: exponential moving average of the batch's perplexity e^loss, and whether a batch exceeds it."""

    def __init__(self, options: PerplexitySpikeOptions):
        self.options = options
        self.value: float | None = None

    def exceeded(self, step: int, loss: float) -> float | None:
        """By which share the finite loss of a step exceeds the average before it, or None; then takes it in."""
        perplexity = math.exp(min(loss, 700.0))
        before = perplexity if self.value is None else self.value
        self.value = self.options.decay * before + (1 - self.options.decay) * perplexity
        share = perplexity / before - 1
        return share if step >= self.options.warmup_steps and share > self.options.threshold else None


class PerplexitySpike(Monitor):
    """Acts when the batch's perplexity exceeds its moving average by a share."""

    def __init__(self, options: PerplexitySpikeOptions, context: MonitorContext):
        super().__init__(options, context)
        self.average = Average(options)

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        if not math.isfinite(floats["loss"]):
            return Verdict()
        share = self.average.exceeded(step, floats["loss"])
        if share is None:
            return Verdict()
        reason = f"perplexity {100 * share:.1f} % above its moving average"
        return Verdict(ACTIONS[self.options.action], reason, self.name, step)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.value = state["average"]
