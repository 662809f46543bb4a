"""The monitor of gates that stand still."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from muse_core.contracts import Action, Monitor, Verdict
from muse_core.training.monitor_context import MonitorContext
from muse_gate_ablation.options import GateCollapseOptions

VARIANCE, DEVIATION = "/gate_variance", "/gate_deviation"
"""Ends of the names under which layers report."""


class GateCollapse(Monitor):
    """Judges every number of a step that ends in ``/gate_variance`` or ``/gate_deviation``; the rest of its name is the
    gate's layer. No numbers of its own."""

    def __init__(self, options: GateCollapseOptions, context: MonitorContext):
        super().__init__(options, context)
        self.options = options
        self.first: dict[str, float] = {}
        self.largest: dict[str, float] = {}
        self.told: list[str] = []

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        variances = read(floats, VARIANCE)
        for gate, variance in variances.items():
            self.first.setdefault(gate, variance)
            self.largest[gate] = max(variance, self.largest.get(gate, variance))
        found = self.collapsed(step, read(floats, DEVIATION)) | self.unmoved(step)
        if step + 1 == self.options.after and not self.first:
            found[""] = "no layer reports gate_variance, so there is no gate to judge - leave the monitor out"
        fresh = {gate: reason for gate, reason in found.items() if gate not in self.told}
        self.told += list(fresh)
        if not fresh:
            return Verdict()
        action = Action.HALT if self.options.failure == "halt" else Action.CONTINUE
        return Verdict(action, "; ".join(fresh.values()), self.name, step)

    def collapsed(self, step: int, deviations: Mapping[str, float]) -> dict[str, str]:
        """Gates that hardly vary, with a sentence."""
        if step < self.options.after:
            return {}
        return {
            gate: f"the gate of {gate} has a standard deviation of {value:.2g} over tokens and features, below "
            f"{self.options.deviation:g} - it decides nothing"
            for gate, value in deviations.items() if value < self.options.deviation
        }

    def unmoved(self, step: int) -> dict[str, str]:
        """Gates whose variance has not grown in time, with a sentence."""
        if step + 1 != self.options.by:
            return {}
        return {
            gate: f"the variance of the gate of {gate} has grown to {self.largest[gate] / first:.2f} times its first "
            f"value within {self.options.by} steps, not to {self.options.growth:g}"
            for gate, first in self.first.items()
            if first > 0 and self.largest[gate] < self.options.growth * first
        }

    def state_dict(self) -> dict[str, Any]:
        return {"first": dict(self.first), "largest": dict(self.largest), "told": list(self.told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first, self.largest = dict(state["first"]), dict(state["largest"])
        self.told = list(state["told"])


def read(floats: Mapping[str, float], ending: str) -> dict[str, float]:
    """Gate → number, of those that end so. What is not finite, as in a step that is skipped, says nothing of a gate."""
    found = {name.removesuffix(ending): value for name, value in floats.items() if name.endswith(ending)}
    return {gate: value for gate, value in found.items() if math.isfinite(value)}
