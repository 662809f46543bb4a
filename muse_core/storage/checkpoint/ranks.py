"""What a commit asks of the processes that take part in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from muse_core.errors import StorageError

T = TypeVar("T")


class Meeting(Protocol):
    """Processes that write one checkpoint together; ``muse_core.parallel.one.Ranks`` has all of it."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """A collective: every rank's value, by rank, on every rank. Values are plain JSON values."""
        ...


def together(ranks: Meeting, action: Callable[[], T]) -> list[T]:
    """Runs ``action`` on every rank and returns all results; if it fails on one, it fails on all."""
    failure: Exception | None = None
    report: dict[str, Any] = {}
    try:
        report["value"] = action()
    except (OSError, StorageError, ValueError) as error:
        failure = error
        report["error"] = str(error)
    reports = ranks.gather(report)
    if failure is not None:
        raise failure
    for rank, other in enumerate(reports):
        if "error" in other:
            raise StorageError(f"rank {rank}: {other['error']}")
    return [other["value"] for other in reports]
