"""Stages with a plan of their own: settings, batches with more than tokens, tensors in checkpoints, an early end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from muse_core.component import Component
from muse_core.contracts import Batch, Result
from muse_core.data.batches import micro_batches, to_device
from muse_core.metrics.jsonl import read_rows
from muse_core.storage.checkpoint import Checkpoints
from muse_core.training.objectives import NextToken
from muse_core.training.stop import Stop

Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]


@attrs.frozen(kw_only=True)
class AverageOptions:
    """Cross-entropy plus the distance of the hidden states' mean from a running one."""


class Marked:
    """The run's batches with the number of the step in every row."""

    def __init__(self, data: Any, run: Path):
        self.data, self.run = data, run

    def data_step(self, step: int, quarantine: Any = ()) -> int:
        return self.data.data_step(step, quarantine)

    def batch(self, step: int, quarantine: Any = ()) -> Batch:
        assert (self.run / "recipe.toml").is_file()
        batch = self.data.batch(step, quarantine)
        return batch._replace(extra={"step": torch.full((len(batch.inputs),), step)})


class RunningMean(NextToken):
    """Its mean is a tensor that the next step depends on; ends once the step marked 3 was seen."""

    def __init__(self) -> None:
        self.mean = torch.zeros(32)
        self.seen = -1

    @property
    def finished(self) -> bool:
        return self.seen >= 3

    def __call__(self, model: Any, batch: Batch, state: Any) -> Result:
        assert batch.extra["step"].shape == batch.inputs.shape[:1]
        self.seen = int(batch.extra["step"][0])
        hidden = model(batch.inputs, state, batch.tokens).hidden.mean((0, 1))
        distance = (hidden - self.mean).square().sum() * batch.loss_mask.sum()
        self.mean = 0.5 * (self.mean + hidden.detach())
        return Result(distance, {"average/distance": distance.detach()}, {}, None)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_tensors(self, tensors: dict[str, Tensor], device: Any) -> None:
        self.mean = tensors["mean"].to(device, copy=True)


class Average:
    def __init__(self, options: AverageOptions, context: Any):
        self.setup = context

    def settings(self, train: Any) -> Any:
        return attrs.evolve(train, steps=20, learning_rate=1e-2)

    def batches(self, run: Path) -> Marked:
        return Marked(self.setup.training_data(), run)

    def objective(self, model: Any, data: Any) -> RunningMean:
        return RunningMean()

    def trainable(self, name: str) -> bool:
        return True

    def finish(self, model: Any) -> None:
        return None


@pytest.fixture(autouse=True)
def _with_average(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry knows the stage ``average``, which a plugin would register."""
    original = type(registry).find

    def find(self: Any, kind: str, name: str) -> Any:
        row = original(self, kind, "train" if name == "average" else name)
        if name != "average":
            return row
        return attrs.evolve(
            row, component=Component(name, options=AverageOptions, implementation=f"{__name__}:Average")
        )

    monkeypatch.setattr(type(registry), "find", find)


def test_the_plan_of_a_stage_is_its_own_and_its_end_too(table: Table, go: Go, tmp_path: Path) -> None:
    summary = go(table(stages=["average", "train"]), "run")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] == "train"]
    steps = [(row["stage"], row["step"]) for row in rows]
    assert steps == [*((0, number) for number in range(1, 5)), *((1, number) for number in range(1, 9))]
    assert max(row["learning_rate"] for row in rows if row["stage"] == 0) == pytest.approx(1e-2)
    assert summary["planned_steps"] == 8
    alone = go(table(stages=["average"]), "alone")
    assert (alone["planned_steps"], alone["steps"], alone["stopped_by_time"]) == (20, 4, False)


def test_what_is_no_cross_entropy_has_no_bits(table: Table, go: Go, tmp_path: Path) -> None:
    go(table(stages=["average", "train"]), "run")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] == "train"]
    for row in rows:
        numbers = [isinstance(row[key], float) for key in ("bits_per_byte", "perplexity")]
        assert numbers == [row["stage"] == 1] * 2, row


@pytest.mark.parametrize("steps", [2, 4, 6])
def test_tensors_of_an_objective_come_back(
    table: Table, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Stopped inside the stage, after its early end, and in the next one."""
    recipe = table(stages=["average", "train"])
    go(recipe, "whole")
    seen = {"steps": 0}

    def requested(self: Stop) -> bool:
        seen["steps"] += 1
        return seen["steps"] >= steps

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", property(requested))
        go(recipe, "pieces")
    go(recipe, "pieces")
    whole, pieces = (Checkpoints(tmp_path / name).newest() for name in ("whole", "pieces"))
    assert whole[1].json["stage"] == pieces[1].json["stage"] == 1
    assert whole[1].state_hash() == pieces[1].state_hash()


def test_extra_tensors_go_with_their_rows(table: Table, prepare: Any) -> None:
    batch = prepare(table()).training_data().batch(0)
    batch = batch._replace(extra={"row": torch.arange(len(batch.inputs))})
    pieces = [to_device(piece, torch.device("cpu")) for piece in micro_batches(batch, 3)]
    assert [piece.extra["row"].tolist() for piece in pieces] == [[0, 1, 2], [3]]
