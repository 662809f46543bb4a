"""The first stage: whether the training loss gives a reason to look. Imports no torch."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Any

from muse_rollback.options import RollbackOptions

ROW = 3
"""Losses in a row above half of ``deviation`` that are suspect together."""
MAD = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


class Screen:
    """Median m and scale s = 1.4826·MAD of the last losses. Suspect is a loss far above m, three in a row half as
    far, or the median of the most recent ones above m by more than floor and rise · s. Source: reliability
    "Rollback"; three in a row find a lasting damage of one nat before five of eight do."""

    def __init__(self, options: RollbackOptions):
        self.options = options
        self.steps: deque[int] = deque(maxlen=options.recent)
        self.losses: deque[float] = deque(maxlen=options.window)

    def look(self, step: int, loss: float) -> tuple[str, int] | None:
        """Takes in the finite loss of a step. Why it is suspect, with the first step held responsible; or None."""
        full = len(self.losses) == self.options.window
        before = list(self.losses)
        self.losses.append(loss)
        self.steps.append(step)
        if not full:
            return None
        middle = median(before)
        scale = max(MAD * median([abs(one - middle) for one in before]), self.options.scale)
        least = max(self.options.floor, self.options.rise * scale)
        recent = list(self.losses)[-self.options.recent :]
        if loss - middle > self.options.deviation * scale:
            what = f"loss {loss:.4f} is {(loss - middle) / scale:.1f} deviations above {middle:.4f}"
        elif (lowest := min(recent[-ROW:])) - middle > self.options.deviation / 2 * scale:
            what = f"{ROW} losses in a row are at least {(lowest - middle) / scale:.1f} deviations above {middle:.4f}"
        elif median(recent) - middle > least:
            what = f"the median of the last {len(recent)} losses is {median(recent) - middle:.4f} above {middle:.4f}"
        else:
            return None
        # The update of a step shows in the loss of the next one.
        first = next(one for one, value in zip(self.steps, recent) if value - middle > least or one == step)
        return what, max(first - 1, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps), "losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = deque(state["steps"], maxlen=self.options.recent)
        self.losses = deque(state["losses"], maxlen=self.options.window)
