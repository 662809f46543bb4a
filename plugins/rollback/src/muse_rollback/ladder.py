"""What a rollback does besides going back. Imports no torch."""

from __future__ import annotations

from muse_core.contracts import Remedy

RUNGS = (
    Remedy(),
    Remedy(older=1, window=4, rate=0.5),
    Remedy(older=1, window=16, rate=0.5, reset_moments=True),
)
"""By the number of rollbacks within the last 1,000 steps. The core halts a run that asks for more."""


def remedy(rollbacks: int, margin: int) -> Remedy:
    """That of the next rollback, ``margin`` steps before the onset."""
    return RUNGS[min(rollbacks, len(RUNGS) - 1)]._replace(margin=margin)
