"""What monitors share that look at the model between steps, at a cost."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from muse_core.contracts import Action, Monitor, Verdict

PART_OF_STEP = 0.4
"""What reading tokens takes of what training on them takes, before it was measured: a third for forward without
backward, and more because what is read beside training comes in smaller batches."""

MARGIN = 1.5
"""What the next one may take of what the longest did. Without it 1.01 % were spent where 1 % was allowed: of six probes
the last took a third longer than any before, on a machine that others used too."""


class ProbeBudget:
    """Counts the wall clock of a run and what has been spent of it; asks before something is done that costs.

    ``step`` is called once a training step, ``spending`` around what costs. ``share_with_next`` is the share of the
    run's time that would have been spent if one more were done now: while it is asked and obeyed, ``share``, measured
    over whole intervals from the end of one to the end of the next, stays below the budget. An attempt that resumes a
    run starts with nothing spent.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        """Seconds."""
        self.cost = 0.0
        """Seconds of the last one."""
        self.largest: float | None = None
        """Seconds of the longest one; None before the first."""
        self._started: float | None = None
        self._steps = 0

    def step(self) -> None:
        """A training step has come this far."""
        if self._started is None:
            self._started = time.perf_counter()
        self._steps += 1

    @property
    def share(self) -> float:
        """Of the wall clock since the first step, what was spent."""
        elapsed = self._elapsed()
        return self.spent / elapsed if elapsed else 0.0

    def share_with_next(self, passes: float) -> float:
        """As ``share`` with one more. ``passes``: how many training batches the first of them reads; later ones are
        planned at ``MARGIN`` times the longest."""
        elapsed = self._elapsed()
        if not elapsed:
            return math.inf
        if self.largest is not None:
            cost = MARGIN * self.largest
        else:
            cost = elapsed / self._steps * passes * PART_OF_STEP
        return (self.spent + cost) / elapsed

    @contextlib.contextmanager
    def spending(self, *, once: bool = False) -> Iterator[None]:
        """What happens inside is spent, also when it raises. ``once``: it will not come again, so that nothing is
        planned by it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            cost = time.perf_counter() - started
            self.spent += cost
            if not once:
                self.cost, self.largest = cost, max(cost, self.largest or 0.0)

    def _elapsed(self) -> float:
        return 0.0 if self._started is None else time.perf_counter() - self._started


class BudgetedProbe(Monitor):
    """A monitor that probes every so many steps while that stays within a share of the run's wall clock.

    A subclass gives ``probe``, spends within ``self.probe_budget.spending()``, and writes a sentence into ``failure``
    when what it found is bad; the next ``judge`` reports it once, as "warn" or "halt" asks. Number of a step:
    ``share_max``, the share if one more ran now; it is reduced over ranks, so that all decide alike.
    """

    def __init__(
        self, name: str, *, every: int, budget: float, on_failure: Literal["warn", "halt"], passes: float
    ):
        """``passes``: how many training batches the first probe reads."""
        self.name = name
        self.every = every
        self.budget = budget
        self.on_failure = on_failure
        self.passes = passes
        self.probe_budget = ProbeBudget()
        self.step = 0
        self.failure = ""

    def measure(self, moment: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
        if moment != "gradients":
            return {}
        self.probe_budget.step()
        return {"share_max": torch.tensor(self.probe_budget.share_with_next(self.passes), dtype=torch.float64)}

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        self.step = step
        if not self.failure:
            return Verdict()
        failure, self.failure = self.failure, ""
        return Verdict(Action.HALT if self.on_failure == "halt" else Action.CONTINUE, failure, self.name, step)

    def wants_probe(self, step: int, floats: Mapping[str, float]) -> bool:
        return step % self.every == 0 and floats[f"{self.name}/share_max"] <= self.budget

    def costs(self) -> dict[str, float]:
        """``seconds`` of the last probe and ``share`` of the run's time that probes have taken."""
        return {"seconds": self.probe_budget.cost, "share": self.probe_budget.share}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what the wall clock decides must not enter the state of a run."""
        return {}

