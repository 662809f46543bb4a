"""What the thread that watches the processes takes for a loss."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from muse_core.errors import PluginError, RecipeError
from muse_core.parallel.group import broken
from muse_core.parallel.watch import SILENT, Watch, first_failure, post, waits


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
    about = {"beat": 1, "marks": 0, "doing": "the backward pass", "limit": 30.0, "done": False, "waits": False,
             "host": "h", "pid": 9}
    store.set(f"beat/{rank}", json.dumps(about | more))


@pytest.mark.parametrize(("behind", "seconds", "lost"), [
    ({"marks": 4}, 29.0, False),
    ({"marks": 4}, 31.0, True),
    ({"marks": 4, "limit": 3600.0}, 31.0, False),  # at work that is known to take long
    ({"marks": 5}, 31.0, False),  # nobody waits for it
    ({"marks": 4, "done": True}, 31.0, False),
    ({"marks": 5, "others": {"waits": True}}, 31.0, True),  # within the same place, as in a layer's gather
    ({"marks": 5, "others": {"waits": True}}, 29.0, False),
    ({"marks": 5, "waits": True, "others": {"waits": True}}, 31.0, False),
    ({"marks": 5, "others": {"waits": True, "done": True}}, 31.0, False),
])  # fmt: skip
def test_a_rank_that_stands_still_longer_than_its_limit_while_others_wait(
    watch: tuple[Watch, Store], behind: dict[str, Any], seconds: float, lost: bool
) -> None:
    made, store = watch
    others, behind = behind.get("others", {}), {key: value for key, value in behind.items() if key != "others"}
    say(store, 0, marks=5, **others)
    say(store, 1, **behind)
    say(store, 2, marks=5, **others)
    made.look()
    for seen in made._seen:
        seen.moved = seen.turned = time.monotonic() - seconds
    made._judge()
    if not lost:
        assert made.failure is None and first_failure(store) is None
        return
    assert made.failure is not None and made.failure == first_failure(store)
    assert made.failure.rank == 1 and "stands still for 31 s at the backward pass" in made.failure.sentence


def test_who_waits_and_works_by_turns_is_not_lost(watch: tuple[Watch, Store]) -> None:
    """Ranks that stay long at one place, as on a slow machine, of which the others wait now and then."""
    made, store = watch
    for rank in range(3):
        say(store, rank, waits=rank != 1)
    made.look()
    for seen in made._seen:
        seen.moved = seen.turned = time.monotonic() - 31.0
    say(store, 1, beat=2, waits=True)
    made.look()
    say(store, 1, beat=3)
    made._judge()
    assert made.failure is None


def test_after_all_processes_were_stopped_nobody_is_lost(watch: tuple[Watch, Store]) -> None:
    """As by Ctrl-Z and fg, or a container that is paused."""
    made, store = watch
    say(store, 0, marks=5)
    say(store, 1, marks=4)
    say(store, 2, marks=5)
    made.look()
    for seen in made._seen:
        seen.alive = seen.moved = time.monotonic() - 3600.0
    made._woken()
    made._judge()
    assert made.failure is None


def test_a_process_says_that_it_waits_for_others() -> None:
    assert not waits()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        seen = []

        class Value(torch.Tensor):
            @classmethod
            def __torch_function__(cls, *given: Any, **more: Any) -> Any:
                seen.append(waits())
                return super().__torch_function__(*given, **more)

        dist.all_reduce(torch.zeros(1).as_subclass(Value))
    finally:
        dist.destroy_process_group()
    assert seen and all(seen)


def test_a_connection_that_breaks_in_a_plugins_code_is_no_fault_of_the_plugin() -> None:
    reset = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
    assert broken(reset) and broken(caused(PluginError("optimizer 'muon' raised"), reset))
    assert not broken(caused(PluginError("optimizer 'muon' raised"), ZeroDivisionError("gain")))
    assert not broken(RecipeError("several processes on GPUs need NCCL, and this torch is built without it"))
    fault = ValueError("raised from itself")
    assert not broken(caused(fault, fault)) and not broken(caused(PluginError("raised"), fault))


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


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
