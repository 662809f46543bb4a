"""Learning rates over the updates of a run: the core's schedules, and the factor that a recipe's [train] gives."""

from __future__ import annotations

import math

from muse_core.building import construct
from muse_core.component import Use
from muse_core.errors import MuseError, PluginError
from muse_core.plugins.raised import raised
from muse_core.recipe.schema import Train
from muse_core.training.options import CosineOptions, WarmupStableDecayOptions
from muse_core.training.rule_context import ScheduleContext

SLACK = 1e-9
"""Rounding above 1."""


class Cosine:
    """Linear warm-up, then f + (1 − f)(1 + cos πp)/2 with the part p of the steps after it that are done and the final
    rate f (Loshchilov and Hutter 2017); f from the last step on."""

    def __init__(self, options: CosineOptions, context: ScheduleContext):
        self.context = context

    def factor(self, updates: int) -> float:
        """Share of the peak rate."""
        context = self.context
        rising = context.warming(updates)
        if rising is not None:
            return rising
        span = max(1, context.steps - 1 - context.warmup_steps)
        return half_cosine(min(1.0, (updates - context.warmup_steps) / span), context.final_rate)


class WarmupStableDecay:
    """Warm-up, stable, decay (Hu et al., "MiniCPM", 2024): linear warm-up, the peak rate, and over the last
    D = round(decay · steps) updates a fall to the final rate f, which is reached at the last of them and kept.

    With u = (updates − (steps − 1 − D)) / D in (0, 1] the share is 1 − (1 − f) u, half a cosine,
    1 − (1 − f) √u (Hägele et al. 2024) or f^u. A warm-up that reaches into the decay goes first.
    """

    def __init__(self, options: WarmupStableDecayOptions, context: ScheduleContext):
        self.options, self.context = options, context
        self.length = round(options.decay * context.steps)

    def unchanged_until(self) -> int:
        """Updates before the decay: every longer schedule shares their rates, since its own decay, the same share of
        more steps, begins no earlier."""
        return self.context.steps - self.length

    def factor(self, updates: int) -> float:
        """Share of the peak rate."""
        rising = self.context.warming(updates)
        if rising is not None:
            return rising
        done = updates - (self.context.steps - 1 - self.length)
        if done <= 0 or not self.length:
            return 1.0
        part, final = min(1.0, done / self.length), self.context.final_rate
        match self.options.form:
            case "linear":
                return 1 - (1 - final) * part
            case "cosine":
                return half_cosine(part, final)
            case "root":
                return 1 - (1 - final) * math.sqrt(part)
            case "exponential":
                return final**part


def half_cosine(part: float, final: float) -> float:
    """From 1 at part 0 to ``final`` at part 1."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * part))


class Rates:
    """The share of the peak rate over updates, by the schedule of a recipe's [train]."""

    def __init__(self, train: Train):
        """Raises RecipeError or PluginError when the schedule cannot be built."""
        self.use: Use = train.schedule
        self.schedule = construct(self.use, ScheduleContext.of(train))

    def __call__(self, updates: int) -> float:
        """The share at the update after ``updates`` updates. Raises PluginError for a schedule that gives none."""
        use = self.use
        try:
            factor = float(self.schedule.factor(updates))
        except MuseError:
            raise
        except Exception as error:
            raise PluginError(f"{use.title} raised at update {updates}: {raised(error, use.implementation)}") from error
        if not 0.0 <= factor <= 1.0 + SLACK:
            raise PluginError(
                f"{use.title} does not keep the contract: at update {updates} the share of the peak rate is {factor}, "
                "outside 0 to 1"
            )
        return factor

    @property
    def unchanged_until(self) -> int:
        """First updates whose rates every longer schedule shares; 0 where the schedule does not say."""
        ask = getattr(self.schedule, "unchanged_until", None)
        return int(ask()) if ask is not None else 0
