"""What the thread that watches the processes takes for a loss."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from muse_core.parallel.watch import SILENT, Watch, first_failure, post


class Store:
    """Of one process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.counts: dict[str, int] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> str:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def multi_get(self, keys: list[str]) -> list[str]:
        return [self.values[key] for key in keys]

    def add(self, key: str, more: int) -> int:
        self.counts[key] = self.counts.get(key, 0) + more
        return self.counts[key]


@pytest.fixture
def watch() -> Iterator[tuple[Watch, Store]]:
    """Rank 0 of three; its thread has ended, so that nothing is judged but what a test asks for."""
    store = Store()
    made = Watch(0, 3, lambda: store, exit=lambda code: None)
    made.close()
    yield made, store


def say(store: Store, rank: int, **more: Any) -> None:
    about = {"beat": 1, "marks": 0, "doing": "the backward pass", "limit": 30.0, "done": False, "host": "h", "pid": 9}
    store.set(f"beat/{rank}", json.dumps(about | more))


@pytest.mark.parametrize(("behind", "seconds", "lost"), [
    ({"marks": 4}, 29.0, False),
    ({"marks": 4}, 31.0, True),
    ({"marks": 4, "limit": 3600.0}, 31.0, False),  # at work that is known to take long
    ({"marks": 5}, 31.0, False),  # nobody waits for it
    ({"marks": 4, "done": True}, 31.0, False),
])  # fmt: skip
def test_a_rank_that_stands_still_longer_than_its_limit_while_others_wait(
    watch: tuple[Watch, Store], behind: dict[str, Any], seconds: float, lost: bool
) -> None:
    made, store = watch
    say(store, 0, marks=5)
    say(store, 1, **behind)
    say(store, 2, marks=5)
    made.look()
    for seen in made._seen:
        seen.moved = time.monotonic() - seconds
    made._judge()
    if not lost:
        assert made.failure is None and first_failure(store) is None
        return
    assert made.failure is not None and made.failure == first_failure(store)
    assert made.failure.rank == 1 and "stands still for 31 s at the backward pass" in made.failure.sentence


def test_a_rank_without_a_sign_of_life_and_the_first_failure_is_what_counts(watch: tuple[Watch, Store]) -> None:
    made, store = watch
    for rank in range(3):
        say(store, rank)
    made.look()
    made._judge()
    assert made.failure is None
    made._seen[2].alive = time.monotonic() - SILENT - 1
    say(store, 1, beat=2)
    made._judge()
    assert made.failure is not None and made.failure.rank == 2
    assert made.failure.sentence.startswith("rank 2 (process 9 on h) has given no sign of life for 20 s")
    assert post(store, made.failure) == 2 and first_failure(store) == made.failure
