"""Which data a step reads when some have been found poisonous."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def data_step(step: int, quarantine: Sequence[tuple[int, int]] = ()) -> int:
    """Which step's data ``step`` reads when the data of quarantined steps are passed over.

    quarantine: half-open ranges (first, end) of data steps. Without it the answer is ``step``.
    """
    for first, end in _merged(quarantine):
        if step < first:
            break
        step += end - first
    return step


def _merged(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same steps as disjoint half-open ranges in rising order."""
    pending: tuple[int, int] | None = None
    for first, end in sorted((first, end) for first, end in ranges if first < end):
        if pending is None:
            pending = first, end
        elif first <= pending[1]:
            pending = pending[0], max(pending[1], end)
        else:
            yield pending
            pending = first, end
    if pending:
        yield pending
