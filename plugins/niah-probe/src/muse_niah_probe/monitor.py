"""The needle probe as a monitor of the loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from muse_core.training.monitor_context import MonitorContext
from muse_core.training.monitors import BudgetedProbe
from muse_niah_probe.capacity import Capacity, capacity
from muse_niah_probe.needles import KEYS_PER_ROW, Needles, make_needles
from muse_niah_probe.options import NiahProbeOptions
from muse_niah_probe.recall import recall

WIDTH, BURIED, TRIALS = 64, 64, 128
"""Of the capacity test: as many pairs as the width, where theory says 0.707; the mean over trials varies by 0.9 %."""
CAPACITY_TOLERANCE = 0.05
CONTROLS = ("over_emptied", "over_shuffled", "over_other_key")
ROWS_OF_TEXT = 2
"""Held-out text looked at, in multiples of what the rows need: separators are left out of it."""
ASKED = 448
"""Tokens beside the text that a row reads, in bytes: four needles, and four times question and answer."""


class NiahProbe(BudgetedProbe):
    """Probes every so many steps while that stays within the budget.

    Numbers of a probe: ``recall`` (share of needles answered exactly), ``chance`` (what ignoring the
    key asked for gives), ``log_probability``, ``over_emptied``, ``over_shuffled`` and ``over_other_key`` (nats per
    answer token), ``distance`` (tokens), ``capacity`` and ``capacity_expected`` (cosines;
    where the run has fast-weight kernels), ``seconds``, ``share``, ``failed`` (0 or 1).
    The needles are the same at every probe of a run; the capacity is measured once, after the first step.
    Source: mathematics §9.
    """

    def __init__(self, options: NiahProbeOptions, context: MonitorContext):
        self.options = options
        self.context = context
        self.fast_weights = None
        if context.kernels is not None:
            self.fast_weights = context.kernels.bind("fast_weights", sizes={"key": WIDTH, "value": WIDTH}, needs=())
        self.lead = max(context.sequence_length // 8, 1)
        self.distance = math.ceil(options.distance * context.sequence_length)
        tokens = options.needles * (self.lead + self.distance + ASKED)
        calls = math.ceil((self.lead + self.distance) / context.sequence_length) + 4
        super().__init__(
            context.name,
            every=options.every,
            budget=options.budget,
            on_failure=options.failure,
            # Of a small model a call costs more than its tokens.
            passes=max(tokens / (context.batch_size * context.sequence_length), calls),
        )
        self.held: Capacity | None = None

    def wants_probe(self, step: int, floats: Mapping[str, float]) -> bool:
        """Asked first after the first step, which is when the capacity is measured: it does not change with the
        weights, and a kernel that is off should not train for long."""
        if self.fast_weights is not None and self.held is None:
            with self.probe_budget.spending(once=True):
                self.held = self._capacity(torch.device(self.context.kernels.device))
            self.failure = self._off_theory(self.held)
        return super().wants_probe(step, floats)

    def probe(self, model: Any) -> dict[str, float]:
        with self.probe_budget.spending():
            found = self._probe(model)
        self.failure = self._failure(found)
        return found | self.costs() | {"failed": float(bool(self.failure))}

    def needles(self) -> Needles:
        """The run's needles, in the first held-out text."""
        enough = ROWS_OF_TEXT * self.options.needles * (self.lead + self.distance)
        return make_needles(
            self.context.tokenizer,
            np.asarray(self.context.validation()[:enough]),
            rows=self.options.needles,
            lead=self.lead,
            distance=self.distance,
            random=np.random.default_rng([self.context.seed, 0x1E55]),
        )

    def _probe(self, model: Any) -> dict[str, float]:
        needles = self.needles()
        answered = recall(model, needles, segment=self.context.sequence_length)
        found = {
            "recall": answered.exact,
            "chance": 1 / KEYS_PER_ROW,
            "log_probability": answered.log_probability,
            "over_emptied": answered.over_emptied,
            "over_shuffled": answered.over_shuffled,
            "over_other_key": answered.over_other_key,
            "distance": needles.distance,
        }
        if self.fast_weights is not None:
            self.held = self.held or self._capacity(next(model.parameters()).device)
            found |= {"capacity": self.held.measured, "capacity_expected": self.held.expected}
        return found

    def _capacity(self, device: torch.device) -> Capacity:
        return capacity(
            self.fast_weights,
            width=WIDTH,
            buried=BURIED,
            trials=TRIALS,
            generator=torch.Generator().manual_seed(self.context.seed),
            device=device,
            dtype=getattr(torch, self.context.kernels.dtype),
        )

    def _failure(self, found: Mapping[str, float]) -> str:
        """What is wrong with the numbers of a probe, in a sentence, or nothing."""
        broken = [name for name, value in found.items() if not math.isfinite(value)]
        if broken:
            return f"the needle probe gives a number that is not finite: {', '.join(broken)}"
        if self.held is not None and (off := self._off_theory(self.held)):
            return off
        least, margin = self.options.minimum_margin, min(found[control] for control in CONTROLS)
        if least is not None and self.step >= self.options.after and margin < least:
            return f"memory gains {margin:.3f} nats per answer token over its controls, less than {least}"
        return ""

    def _off_theory(self, held: Capacity) -> str:
        if abs(held.measured / held.expected - 1) <= CAPACITY_TOLERANCE:
            return ""
        return f"the memory kernel recalls with cosine {held.measured:.3f} where theory says {held.expected:.3f}"
