"""Options of the polarisation loss and of the gates monitor. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
from attrs import field, validators

from muse_core.component import Requirement

WEIGHT = [validators.ge(0.0), validators.le(1000.0)]


@attrs.frozen(kw_only=True)
class PolarisationOptions:
    """Presses the gate of the nearest layer before it towards open or shut, strongly at first, and reports its load and
    entropy at every step. Adds nothing to the stream; place it after the layer whose gate is meant."""

    start: float = field(default=10.0, validator=WEIGHT)
    """Weight λ of mean(1 − |2g − 1|) at the first step, in nats per token; 0 for both weights only reports."""
    end: float = field(default=0.1, validator=WEIGHT)
    """Weight at the last step; between them λ falls by the same factor in equal parts of the run."""

    adds_nothing: ClassVar[bool] = True

    def __attrs_post_init__(self) -> None:
        if (self.start == 0.0) != (self.end == 0.0):
            raise ValueError(
                f"start and end must both be 0 or both be positive, since λ changes by factors; they are "
                f"{self.start:g} and {self.end:g}"
            )

    def requires(self) -> tuple[Requirement, ...]:
        """``gate``: how far open the gate is at each token, g in [0, 1]."""
        return (Requirement("gate"),)


@attrs.frozen(kw_only=True)
class GateAblationOptions:
    """Judges every gate of the model by what held-out loss it is worth: the loss with the gate's answer replaced by its
    mean over tokens, less the loss as it is. Also reports how open gates are and how much they decide. Waits whenever
    that would take more than ``budget`` of the run's time.
    """

    every: int = field(default=500, validator=validators.ge(1))
    """Steps between probes."""
    tokens: int = field(default=2048, validator=[validators.ge(2), validators.le(1_048_576)])
    """Held-out tokens read for each gate, in whole training sequences, at least two."""
    match: str = "*.gate"
    """Pattern of the names of modules that are gates: they map x (B, N, D) to pre-activations z (B, N, C), and σ(z) is
    how far open the gate is."""
    budget: float = field(default=0.01, validator=[validators.gt(0.0), validators.le(1.0)])
    """Largest share of the run's wall clock that these probes may take."""
    worth: float = field(default=0.001, validator=validators.ge(0.0))
    """Nats per token that a gate must be worth."""
    after: int = field(default=1000, validator=validators.ge(0))
    """Step from which gates are judged; before, they are only measured."""
    failure: Literal["warn", "halt"] = "warn"
    """What gates that are idle or harmful lead to: a warning in the records, or the end of the run."""


@attrs.frozen(kw_only=True)
class GateCollapseOptions:
    """Follows how much the openness of each gate varies over tokens and features, which layers report as
    ``gate_variance`` and ``gate_deviation``, and tells early of a gate that stands still."""

    growth: float = field(default=1.5, validator=[validators.gt(0.0), validators.le(1000.0)])
    """Times its first value that a gate's variance must have reached."""
    by: int = field(default=500, validator=validators.ge(1))
    """Steps within which it must have."""
    deviation: float = field(default=0.01, validator=[validators.ge(0.0), validators.le(0.5)])
    """Standard deviation that a gate may not fall below."""
    after: int = field(default=100, validator=validators.ge(0))
    """Steps from which that holds."""
    failure: Literal["warn", "halt"] = "warn"
    """What a gate that stands still leads to: a warning in the records, once a gate, or the end of the run."""
