"""Options of the needle probe. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs import field, validators


@attrs.frozen(kw_only=True)
class NiahProbeOptions:
    """Hides sentences that pair a key with a value in held-out text, four in a row at drawn places, asks for one of the
    values later, and compares the answer with what the model says when its memory is emptied, exchanged with another
    row's, or asked for another key. Also tests the capacity of the linear memory kernel against theory. Waits whenever
    probes would take more than ``budget`` of the run's time.
    """

    every: int = field(default=200, validator=validators.ge(1))
    """Steps between probes."""
    needles: int = field(default=8, validator=[validators.ge(2), validators.le(256)])
    """Rows of text, each with four needles of which one is asked for."""
    distance: float = field(default=1.25, validator=[validators.gt(0.0), validators.le(1000.0)])
    """Least text between the needle that is asked for and the question, in training sequence lengths; above 1 the
    needle lies outside every window that the model was trained on."""
    budget: float = field(default=0.01, validator=[validators.gt(0.0), validators.le(1.0)])
    """Largest share of the run's wall clock that probes may take; a probe that would exceed it waits for the next
    ``every``."""
    minimum_margin: float | None = None
    """Nats per answer token that memory must gain over each control, or the probe has failed. Default: reported, not
    judged."""
    after: int = field(default=0, validator=validators.ge(0))
    """Step from which ``minimum_margin`` holds."""
    failure: Literal["warn", "halt"] = "warn"
    """What a failed probe leads to: a warning in the records, or the end of the run. Numbers that are not finite and a
    capacity more than 5 % off theory are failures too."""
