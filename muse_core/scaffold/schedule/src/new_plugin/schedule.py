"""The schedule."""

from __future__ import annotations

from muse_core.training.rule_context import ScheduleContext

from new_plugin.options import NewPluginOptions


class NewPlugin:
    """f + (1 − f)(1 − p)^power with the part p of the steps after the warm-up and the final rate f."""

    def __init__(self, options: NewPluginOptions, context: ScheduleContext):
        self.options, self.context = options, context

    def factor(self, updates: int) -> float:
        """Share of the peak rate; also asked for beyond the last step, where it stays."""
        context = self.context
        rising = context.warming(updates)
        if rising is not None:
            return rising
        part = min(1.0, (updates - context.warmup_steps) / max(1, context.steps - 1 - context.warmup_steps))
        return context.final_rate + (1 - context.final_rate) * (1 - part) ** self.options.power
