"""Stages in order: a second one starts from the first one's weights, one that changes the architecture hands over a
recipe and weights, and a resumed run goes on with the stage it was in."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from muse_core.component import Component
from muse_core.errors import PluginError
from muse_core.metrics.jsonl import read_rows
from muse_core.recipe import check_table
from muse_core.report.reading import read_run
from muse_core.report.tables import key_numbers
from muse_core.storage.checkpoint import Checkpoints
from muse_core.training.stop import Stop

Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]


@attrs.frozen(kw_only=True)
class ShrinkOptions:
    """Keeps the first block only."""


class Shrink:
    """A stage that does not train and yields a shallower model."""

    def __init__(self, options: ShrinkOptions, context: Any):
        self.setup = context

    def objective(self, model: Any, data: Any) -> None:
        return None

    def trainable(self, name: str) -> bool:
        return False

    def finish(self, model: Any) -> Any:
        recipe = copy.deepcopy(SHRUNK["recipe"])
        recipe["model"]["depth"] = 1
        return recipe, {name: value for name, value in model.state_dict().items() if not name.startswith("blocks.1.")}


class Breaks(Shrink):
    def objective(self, model: Any, data: Any) -> None:
        raise KeyError("oh")


SHRUNK: dict[str, Any] = {}


@pytest.fixture
def with_shrink(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry knows the stages ``shrink`` and ``breaks``, which a plugin would register."""
    original = type(registry).find

    def find(self: Any, kind: str, name: str) -> Any:
        row = original(self, kind, "train" if name in ("shrink", "breaks") else name)
        if name not in ("shrink", "breaks"):
            return row
        implementation = f"{__name__}:{name.capitalize()}"
        return attrs.evolve(row, component=Component(name, options=ShrinkOptions, implementation=implementation))

    monkeypatch.setattr(type(registry), "find", find)


def test_second_stage_starts_from_the_weights_of_the_first(table: Table, go: Go, tmp_path: Path, losses: Any) -> None:
    go(table(), "one")
    summary = go(table(stages=["train", "train"]), "two")
    rows = [row for row in read_rows(tmp_path / "two" / "metrics.jsonl") if row["event"] == "train"]
    assert [row["step"] for row in rows] == [*range(1, 9), *range(1, 9)]
    assert [row["loss"] for row in rows[:8]] == list(losses("one").values())
    assert rows[8]["loss"] < rows[0]["loss"] and summary["steps"] == 8


def test_resumed_run_knows_which_stage_it_was_in(
    table: Table, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = table(stages=["train", "train"])
    go(recipe, "whole")
    for steps in (3, 9):
        seen = {"steps": 0}

        def requested(self: Stop, seen: Any = seen, steps: int = steps) -> bool:
            seen["steps"] += 1
            return seen["steps"] >= steps

        with monkeypatch.context() as patch:
            patch.setattr(Stop, "requested", property(requested))
            go(recipe, "pieces")
    go(recipe, "pieces")
    whole, pieces = (Checkpoints(tmp_path / name).newest() for name in ("whole", "pieces"))
    assert whole[1].json["stage"] == pieces[1].json["stage"] == 1
    assert whole[1].state_hash() == pieces[1].state_hash()


def test_seconds_of_a_resumed_run_are_those_of_its_stage(
    table: Table, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are too, so that their quotient is a speed: a first stage of an hour made the second one slow."""
    recipe, seen, file = table(stages=["train", "train"]), [], tmp_path / "run" / "metrics.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", property(lambda self: len(seen) >= 3 or seen.append(1)))
        go(recipe)
    hour = [row | {"seconds": row["seconds"] + 3600.0} if row["event"] == "train" else row for row in read_rows(file)]
    file.write_text("".join(json.dumps(row) + "\n" for row in hour))
    summary = go(recipe)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for row in read_rows(file):
        if row["event"] == "train":
            seconds[row["stage"]].append(row["seconds"])
    assert min(seconds[0]) >= 3600 > max(seconds[1]) == summary["train_seconds"]
    assert summary["tokens_per_second"] == summary["train_tokens"] / summary["train_seconds"]
    assert summary["train_seconds_all_stages"] == max(seconds[0]) + max(seconds[1])
    assert go(recipe)["train_seconds"] == summary["train_seconds"]


def test_tokens_of_all_stages_are_told_beside_those_of_the_last(table: Table, go: Go, tmp_path: Path) -> None:
    """A reader took the last stage's for the run's."""
    recipe = table(stages=["train", "train"])
    one, two = go(table(), "one"), go(recipe, "two")
    assert one["train_tokens_all_stages"] == one["train_tokens"] == two["train_tokens"] > 0
    assert two["train_tokens_all_stages"] == 2 * one["train_tokens"]
    assert one["train_seconds_all_stages"] == one["train_seconds"] < two["train_seconds_all_stages"]
    (tmp_path / "two" / "summary.json").unlink()
    assert go(recipe, "two")["train_tokens_all_stages"] == 2 * one["train_tokens"]  # of an attempt that trains nothing
    told = key_numbers(read_run(tmp_path / "two"))
    assert ("training tokens", f"{2 * one['train_tokens']:,}") in told


def test_evaluate_stage_measures_weights_of_another_run(table: Table, go: Go, tmp_path: Path) -> None:
    trained = go(table(), "trained")
    measured = go(table(stages=["evaluate"], init={"from": str(tmp_path / "trained")}), "measured")
    assert measured["held_out_loss"] == trained["held_out_loss"] and measured["steps"] == 0


def test_stage_that_changes_the_architecture_hands_over_recipe_and_weights(
    table: Table, go: Go, tmp_path: Path, with_shrink: None
) -> None:
    recipe = table(stages=["train", "shrink", "train"])
    SHRUNK["recipe"] = table()
    summary = go(recipe)
    folder = tmp_path / "run" / "stages" / "1-shrink"
    assert {"recipe.toml", "muse.lock.toml", "checkpoints"} <= {path.name for path in folder.iterdir()}
    before, after = Checkpoints(tmp_path / "run").newest()[1], Checkpoints(folder).newest()[1]
    assert {name for name in before.model if "blocks.1." in name} and after.json["stage"] == 2
    assert not {name for name in after.model if "blocks.1." in name}
    assert summary["parameters"] == sum(value.numel() for value in after.model.values())
    start = Checkpoints(folder).load(1)[1]
    assert all(torch.equal(value, before.model[name]) for name, value in start.model.items())
    again = go(recipe)
    assert again["held_out_loss"] == summary["held_out_loss"], "a finished run does nothing more"


def test_failing_stage_is_named(table: Table, go: Go, with_shrink: None) -> None:
    with pytest.raises(PluginError, match="stage 'breaks' of muse-core .*KeyError"):
        go(table(stages=["breaks"]))


def test_stage_names_are_checked(table: Table, registry: Any) -> None:
    assert [use.name for use in check_table(table(stages=["train", "evaluate"]), registry).recipe.stages] == [
        "train", "evaluate"]
