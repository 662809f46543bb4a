"""Options of the monitors. Imports no torch."""

from __future__ import annotations

import math
from typing import Literal

import attrs
from attrs import field, validators

COUNT = validators.ge(1)
POSITIVE = validators.gt(0.0)


@attrs.frozen(kw_only=True)
class RollbackOptions:
    """Suspects damage by the training loss, decides by the loss on a fixed set of held-out sequences, and goes back to
    a checkpoint that this set has certified. What it does besides grows with every rollback within 1,000 steps: skip
    the data; an older checkpoint, four times the data, half the learning rate; sixteen times the data, fresh moments;
    halt.
    """

    window: int = field(default=128, validator=[validators.ge(16), validators.le(4096)])
    """Steps whose losses give median and scale."""
    recent: int = field(default=8, validator=[validators.ge(2), validators.le(256)])
    """Steps whose median is compared with that of the window."""
    deviation: float = field(default=8.0, validator=POSITIVE)
    """Robust deviations from the median above which one loss is suspect."""
    rise: float = field(default=1.33, validator=POSITIVE)
    """Robust deviations above which the median of the recent steps is suspect."""
    scale: float = field(default=0.005, validator=POSITIVE)
    """Least scale of the training loss, in nats."""
    floor: float = field(default=math.log(1.05), validator=POSITIVE)
    """Nats below which no rise counts, of recent losses and of the canary."""
    every: int = field(default=50, validator=COUNT)
    """Steps between evaluations of the canary; each checkpoint and each suspicion bring one more."""
    sequences: int = field(default=32, validator=[COUNT, validators.le(4096)])
    """Held-out sequences of the canary."""
    references: int = field(default=5, validator=[validators.ge(3), validators.le(64)])
    """Passed evaluations whose median is the canary's reference, and without which nothing is decided."""
    spread: float = field(default=6.0, validator=POSITIVE)
    """The canary's bound in scales of its own changes between evaluations; at least ``floor``."""
    certain: float = field(default=3.0, validator=validators.ge(1.0))
    """Bounds above the reference at which one evaluation decides; above one bound it takes two."""
    apart: int = field(default=4, validator=COUNT)
    """Steps between those two."""
    margin: int = field(default=8, validator=validators.ge(0))
    """Steps that the checkpoint to go back to lies before the onset at least."""
    warmup_steps: int = field(default=300, validator=validators.ge(0))
    """Steps without decisions; not fewer than the learning rate's warm-up."""


@attrs.frozen(kw_only=True)
class PerplexitySpikeOptions:
    """The common rule "perplexity of the batch so much above its moving average". One batch decides, so it mistakes the
    difference between batches for damage: thousands of false alarms in 100,000 steps. For comparison; ``rollback`` is
    the one to use.
    """

    threshold: float = field(default=0.05, validator=POSITIVE)
    """Share by which the batch's perplexity may exceed the average."""
    decay: float = field(default=0.99, validator=[validators.ge(0.0), validators.lt(1.0)])
    """Share of the average that survives a step."""
    warmup_steps: int = field(default=300, validator=validators.ge(0))
    """Steps without decisions."""
    action: Literal["warn", "skip", "rollback"] = "rollback"
    """What an exceedance leads to."""
