"""The processes of a run as its code asks for them, and a run of one. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of one run. Every method that names a collective is called by all of them, in the same order."""

    rank: int
    size: int
    shards: int
    """Processes among which weights and moments are divided; 1: every process holds all of them."""
    sequence: Any
    """Those among which the tokens of a row are divided, a ``sequence.Sequence``; None: every process has whole rows.
    """

    def gather(self, value: Any) -> list[Any]:
        """A collective that may wait long: every rank's value by rank, on every rank. Values are plain JSON values.
        Raises RankLost when a rank ends before it gives its own."""
        ...

    def exchange(self, value: Any) -> list[Any]:
        """A collective, as ``gather``, that is quick and used in every step."""
        ...

    def first(self, action: Callable[[], T]) -> T:
        """A collective: rank 0 does ``action``, then the others do."""
        ...

    def channel(self) -> Ranks:
        """A collective: the same ranks for a thread beside, whose ``gather`` does not mix with others."""
        ...

    def at_work(self, doing: str) -> contextlib.AbstractContextManager[None]:
        """Something that may take long is done inside; without it, a rank for which others wait counts as stalled after
        ``watch.STALL`` seconds."""
        ...

    def mark(self, doing: str) -> None:
        """The rank has come this far in the step."""
        ...

    def ending(self) -> contextlib.AbstractContextManager[None]:
        """An exception that leaves the body ends the run on this rank: it is let go on, whatever others do."""
        ...

    def seed_step(self, seed: int, step: int) -> None:
        """Gives ranks above 0 a random state for the step that is a function of seed, rank and step."""
        ...


class OneRank:
    """A single process."""

    rank = 0
    size = 1
    shards = 1
    sequence = None

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def exchange(self, value: Any) -> list[Any]:
        return [value]

    def first(self, action: Callable[[], T]) -> T:
        return action()

    def channel(self) -> Ranks:
        return self

    def at_work(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def mark(self, doing: str) -> None:
        pass

    def ending(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def seed_step(self, seed: int, step: int) -> None:
        pass


ONE: Ranks = OneRank()
