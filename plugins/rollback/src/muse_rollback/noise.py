"""Training losses and canary losses without a model: what a healthy run looks like. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from attrs import field, validators

SMOOTH = 101
"""Recorded rows whose running median is the level of a recorded run."""


@attrs.frozen(kw_only=True)
class Noise:
    """loss(t) = level(t) + batch · τ(t) + u(t), canary(t) = level(t) + w(t).

    level(t) = last + (first − last) (1 + t / scale)^−power; τ is Student's t with ``degrees`` of freedom, scaled to
    unit variance: heavy tails, as of batches that hold an odd document; u and w are first-order autoregressive with
    standard deviations ``text`` and ``canary``: neighbouring batches share a topic, and the weights wander.
    """

    first: float = 5.5
    """Nats at step 0."""
    last: float = 1.4
    """Nats in the end."""
    scale: float = field(default=60.0, validator=validators.gt(0.0))
    """Steps."""
    power: float = 0.7
    batch: float = field(default=0.08, validator=validators.ge(0.0))
    """Standard deviation of one batch's loss, in nats."""
    degrees: float = field(default=4.0, validator=validators.gt(2.0))
    """Of freedom; with two or fewer the variance is infinite."""
    text: float = field(default=0.02, validator=validators.ge(0.0))
    """Standard deviation of the slow part, in nats."""
    memory: float = field(default=0.98, validator=[validators.ge(0.0), validators.le(1.0)])
    """Share of the slow parts that survives a step."""
    canary: float = field(default=0.006, validator=validators.ge(0.0))
    """Standard deviation of the canary's loss about its level, in nats."""

    def losses(self, steps: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Training and canary losses (steps,) each."""
        level = self.last + (self.first - self.last) * (1 + np.arange(steps) / self.scale) ** -self.power
        tails = random.standard_t(self.degrees, steps) / np.sqrt(self.degrees / (self.degrees - 2))
        loss = level + self.batch * tails + wandering(self.text, self.memory, steps, random)
        return loss, level + wandering(self.canary, self.memory, steps, random)


def wandering(deviation: float, memory: float, steps: int, random: np.random.Generator) -> np.ndarray:
    """(steps,) a stationary first-order autoregressive process of this standard deviation."""
    shocks = deviation * np.sqrt(1 - memory**2) * random.standard_normal(steps)
    value = deviation * random.standard_normal()
    found = np.empty(steps)
    for step, shock in enumerate(shocks):
        value = memory * value + shock
        found[step] = value
    return found


def recorded(rows: Iterable[Mapping[str, Any]], noise: Noise, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Training losses of a run in the order of its steps, of repeated steps the last, and a canary for them.

    The canary is the running median of the losses with the wandering of ``noise``; where the run has evaluated one,
    with the deviation of those values from a straight line through their neighbours. Rows that were not logged are
    missing: a run with ``train.log_every = 1`` is judged step by step, another as if its rows followed one another.
    """
    losses: dict[int, float] = {}
    values: dict[int, float] = {}
    for row in rows:
        if row.get("event") == "train" and isinstance(row["loss"], float):
            losses[row["step"]] = row["loss"]
        elif row.get("event") == "probe" and isinstance(row.get("rollback/canary"), float):
            values[row["step"]] = row["rollback/canary"]
    loss = np.array([losses[step] for step in sorted(losses)])
    deviation = noise.canary
    if len(values) >= 8:
        deviation = measured_deviation([values[step] for step in sorted(values)][len(values) // 2 :])
    level = smoothed(loss)
    return loss, level + wandering(deviation, noise.memory, len(loss), random)


def measured_deviation(values: Sequence[float]) -> float:
    """Standard deviation of independent noise in values on a smooth curve, from second differences (variance 6 σ²)."""
    return float(np.std(np.diff(values, 2)) / np.sqrt(6))


def smoothed(loss: np.ndarray) -> np.ndarray:
    """Running median (steps,), at the ends over what is there."""
    half = SMOOTH // 2
    return np.array([np.median(loss[max(0, step - half) : step + half + 1]) for step in range(len(loss))])
