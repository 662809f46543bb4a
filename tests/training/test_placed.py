"""A step computes its own batch, though the next one is where it will be read before the step's verdict is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from muse_core import fault_injection
from muse_core.contracts import Batch
from muse_core.data.batches import micro_batches, to_device
from muse_core.errors import DataError
from muse_core.metrics.jsonl import read_rows
from muse_core.training import loop as training_loop
from muse_core.training.forward import Forward
from muse_core.training.loop import Loop

Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """``computed``: what was computed, with what was due by the step and the data that are left out; ``placed``: which
    step was at work when a batch was placed, and for which it was."""
    found: dict[str, list[Any]] = {"computed": [], "placed": []}
    compute, place = Loop._pass, Loop._place

    def passes(self: Loop, pieces: Any, carried: Any, whole: torch.Tensor) -> Any:
        step, quarantine = self.state.at.step, self.incidents.quarantine
        batch = self.data.batch(step, quarantine)
        due = []
        for piece in micro_batches(batch, self.recipe.train.micro_batch):
            there = to_device(piece, self.state.precision.device)
            if self.state.stream_state.streams:
                offset = piece.tokens.offset % self.stream_period
                there = there._replace(tokens=there.tokens._replace(offset=offset))
            due.append(there)
        assert whole.item() == batch.loss_mask.sum().item()
        found["computed"].append((step, quarantine, list(pieces), due))
        return compute(self, pieces, carried, whole)

    def placing(self: Loop, batch: Batch) -> Any:
        found["placed"].append(self.state.at.step)
        return place(self, batch)

    monkeypatch.setattr(Loop, "_pass", passes)
    monkeypatch.setattr(Loop, "_place", placing)
    return found


def same(one: Any, other: Any) -> bool:
    (mine, shape), (theirs, other_shape) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return shape == other_shape and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(mine, theirs, strict=True)
    )


def poison(batches: set[int]) -> dict[str, Callable[[Any], Any]]:
    """The losses of these forward passes, in the order of calls, are no numbers."""
    calls = [-1]

    def spoil(result: Any) -> Any:
        calls[0] += 1
        return result._replace(total=result.total * float("nan")) if calls[0] in batches else result

    return {"loss": spoil}


@pytest.mark.parametrize("order", ["permuted", "streams"])
def test_behind_a_skip_and_a_rollback_a_step_reads_its_own_data(
    table: Table, go: Go, watched: dict[str, list[Any]], order: str
) -> None:
    """Two micro-batches a step: step 2 is skipped, and steps 4 to 6 go back to 3, without what they read."""
    model = {"block": [{"use": "fast-weights", "heads": 2, "period": 16, "filters": ["snr"]}]}
    with fault_injection.installed(poison({4, *range(8, 14)})):
        summary = go(table(data={"order": order}, model=model))
    assert summary["rollbacks"] == 1 and summary["steps"] == 8
    steps = [step for step, *_ in watched["computed"]]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7]
    assert {quarantine for _, quarantine, *_ in watched["computed"]} == {(), ((4, 7),)}
    for step, _, pieces, due in watched["computed"]:
        assert same(pieces, due), step
    # Ahead of each step but the first and the one behind the rollback, for which step 7 without its data was placed.
    assert watched["placed"] == [0, 0, 1, 2, 3, 4, 5, 6, 3, 3, 4, 5, 6]


def test_a_batch_that_another_has_replaced_is_placed_itself(
    table: Table, go: Go, watched: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a fault that a test plants: what is computed is what the step was given."""
    given = []

    def shifted(batch: Batch) -> Batch:
        given.append(batch._replace(inputs=batch.inputs.flip(0)))
        return given[-1]

    with fault_injection.installed({"batch": shifted}):
        go(table(train={"steps": 3}))
    for batch, (_, _, pieces, _) in zip(given, watched["computed"], strict=True):
        assert torch.equal(torch.cat([piece.inputs for piece in pieces]), batch.inputs)


def test_a_batch_that_cannot_be_placed_ends_the_run_at_its_own_step(
    table: Table, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the steps before it did is recorded."""
    real, calls = Forward.own_rows, []

    def own_rows(self: Forward, batch: Batch) -> Batch:
        calls.append(batch)
        if len(calls) > 3:
            raise DataError("planted")
        return real(self, batch)

    monkeypatch.setattr(Forward, "own_rows", own_rows)
    with pytest.raises(DataError, match="planted"):
        go(table(train={"steps": 8}))
    steps = [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] == "train"]
    assert steps == [1, 2, 3] and len(calls) == 5


def test_what_depends_on_weights_is_not_placed_before_its_step(
    table: Table, go: Go, watched: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop.TrainingData, "early", False)
    monkeypatch.setattr("muse_core.data.batches.TextData.early", False)
    go(table(train={"steps": 3}))
    assert watched["placed"] == [0, 1, 2]
