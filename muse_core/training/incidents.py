"""Rollbacks of a run: what was undone, which data are skipped since, and when enough is enough.

Incidents live in events.jsonl and not in checkpoints: restoring one would forget why it was restored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from muse_core.contracts import Verdict
from muse_core.errors import Halted, StorageError

MAX_ROLLBACKS = 3
"""Rollbacks within WINDOW steps before the run halts."""
WINDOW = 1000


@attrs.frozen(kw_only=True)
class Incident:
    """One rollback."""

    stage: int
    """Number of the stage; each counts its steps from 0."""
    step: int
    """Step at which damage was found."""
    onset: int
    """First step held responsible."""
    target: int
    """Step of the checkpoint that was restored."""
    data: tuple[int, int] = attrs.field(converter=tuple)
    """Data steps (first, end) that the steps from ``onset`` to ``step`` had read; they are skipped from then on."""
    generation: int
    """Number of the restored checkpoint."""
    through: int
    """Newest generation at that time; those after ``generation`` up to it are abandoned."""
    rate: float = 1.0
    """Factor on the learning rate since."""
    reset_moments: bool = False
    """Whether the optimiser's moments started afresh."""


def _incident(row: Mapping[str, Any]) -> Incident:
    """Raises StorageError for a row that does not tell a rollback: passing it over would change which data are read."""
    try:
        found = Incident(**{field.name: row[field.name] for field in attrs.fields(Incident) if field.name in row})
        whole = (found.stage, found.step, found.onset, found.target, *found.data, found.generation, found.through)
        sound = all(type(value) is int for value in whole) and len(found.data) == 2
        sound = sound and isinstance(found.rate, int | float) and isinstance(found.reset_moments, bool)
    except TypeError:
        sound = False
    if not sound:
        raise StorageError(
            f"events.jsonl: the row of sequence {row.get('sequence')} is a rollback that does not say what was undone "
            "- restore the file from a copy"
        )
    return found


class Incidents:
    """The rollbacks of one stage of a run so far."""

    def __init__(self, stage: int = 0, events: Iterable[Mapping[str, Any]] = (), *, most: int = MAX_ROLLBACKS):
        """``events``: rows of events.jsonl, of which the rollbacks of this stage count."""
        self.most = most
        self.known = [_incident(row) for row in events if row.get("event") == "incident" and row.get("stage") == stage]

    @property
    def quarantine(self) -> tuple[tuple[int, int], ...]:
        """Ranges (first, end) of data steps that are passed over, in the order of discovery."""
        return tuple(incident.data for incident in self.known)

    @property
    def rate(self) -> float:
        """Factor on the learning rate after all of them."""
        return math.prod(incident.rate for incident in self.known)

    def recent(self, step: int) -> int:
        """How many were found within the WINDOW steps before ``step``."""
        return sum(step - incident.step < WINDOW for incident in self.known)

    def resets(self, generation: int) -> bool:
        """Whether the last rollback to this generation began with fresh moments."""
        return next((one.reset_moments for one in reversed(self.known) if one.generation == generation), False)

    def add(self, incident: Incident, verdict: Verdict) -> None:
        """Remember a rollback. Raises Halted when it is one too many: a run that keeps breaking has a cause that
        skipping data does not cure."""
        if self.recent(incident.step) >= self.most:
            raise Halted(
                f"halted at step {incident.step}: {self.most} rollbacks within {WINDOW} steps did not help "
                f"(last: {verdict.monitor}: {verdict.reason}); lower train.learning_rate or look at the data"
            )
        self.known.append(incident)
