"""The conformance suite of safety monitors."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import torch
from torch import Tensor

from muse_core.contracts import Action, Verdict
from muse_core.testing.cases import Case
from muse_core.testing.suite import Suite
from muse_core.training.optimizers import norms


class MonitorSuite(Suite):
    """Judges that are pure functions of reduced numbers, with their history in ``state_dict``; see
    ``contracts.Monitor``."""

    kind = "safety monitor"
    steps = 40

    def gradients(self, step: int, *, damaged: bool = False) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        found = {name: torch.randn(4, 3, generator=generator) for name in ("first.weight", "second.weight")}
        if damaged:
            found["second.weight"][1, 1] = math.nan
        return found

    def floats(self, monitor: Any, step: int, *, damaged: bool = False) -> dict[str, float]:
        """What a step of a healthy run hands to judges: a falling loss and the monitor's own numbers."""
        name = monitor_name(monitor)
        gradients = self.gradients(step, damaged=damaged)
        measured = measured_by(monitor, gradients)
        loss = math.nan if damaged else 5.5 * math.exp(-step / 60) + 0.02 * math.sin(12.9898 * step)
        return {
            "loss": loss,
            "total": 512 * loss,
            "cross_entropy": loss,
            "tokens": 512.0,
            "gradient_norm": math.nan if damaged else 0.5,
            "gradient_nonfinite": float(damaged),
            "state_nonfinite": 0.0,
            "rollbacks": 0.0,
        } | {f"{name}/{key}": float(value) for key, value in measured.items()}

    def test_measures_scalars(self, case: Case) -> None:
        monitor = self.build(case)
        gradients = self.gradients(0)
        measured = measured_by(monitor, gradients)
        for name, value in measured.items():
            assert isinstance(value, Tensor) and value.shape == (), f"{name} is not a scalar tensor"
        assert monitor.measure("a moment of a later version", {}) == {}, "must pass over moments it does not know"

    def test_lets_a_healthy_run_go_on(self, case: Case) -> None:
        monitor = self.build(case)
        for step in range(self.steps):
            verdict = monitor.judge(step, self.floats(monitor, step))
            assert isinstance(verdict, Verdict), f"judge returned {type(verdict).__name__}"
            assert verdict.action == Action.CONTINUE, f"step {step} of a healthy run: {verdict}"

    def test_judges_a_damaged_step_without_raising_and_says_why(self, case: Case) -> None:
        monitor = self.build(case)
        for step in range(5):
            monitor.judge(step, self.floats(monitor, step))
        verdict = monitor.judge(5, self.floats(monitor, 5, damaged=True))
        assert isinstance(verdict.action, Action), f"the verdict's action is {verdict.action!r}, not an Action"
        assert verdict.action == Action.CONTINUE or verdict.reason, "an intervention needs its reason in a sentence"

    def test_state_dict_is_all_that_a_judge_remembers(self, case: Case) -> None:
        """Restored into another instance, the verdicts that follow are the same; the state is plain JSON."""
        monitor, other = self.build(case), self.build(case)
        damaged = {7, 8, 9, 10, 11, 15}
        for step in range(10):
            monitor.judge(step, self.floats(monitor, step, damaged=step in damaged))
        state = json.loads(json.dumps(monitor.state_dict()))
        other.load_state_dict(copy.deepcopy(state))
        for step in range(10, 20):
            expected = monitor.judge(step, self.floats(monitor, step, damaged=step in damaged))
            found = other.judge(step, self.floats(other, step, damaged=step in damaged))
            assert found == expected, f"restored, it says {found} where {expected} was said: state outside state_dict()"
        assert other.state_dict() == monitor.state_dict(), "restored, it remembers something else"

    def test_says_whether_it_wants_to_probe(self, case: Case) -> None:
        monitor = self.build(case)
        for step in (0, 1, 50, 100):
            wants = monitor.wants_probe(step, self.floats(monitor, step))
            assert wants in (True, False), f"wants_probe gave {wants!r}, neither True nor False"


def measured_by(monitor: Any, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """What it measures of a step, at every moment."""
    moments = {"gradients": gradients, "norms": norms_of(gradients), "step": {}}
    return {name: value for moment, given in moments.items() for name, value in monitor.measure(moment, given).items()}


def norms_of(gradients: dict[str, Tensor]) -> dict[str, Any]:
    """Values of the moment ``"norms"``."""
    return {"names": tuple(gradients), "norms": norms(list(gradients.values()))}


def monitor_name(monitor: Any) -> str:
    """The name that the suite's context gave it."""
    return getattr(monitor, "name", "monitor")
