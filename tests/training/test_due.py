"""A checkpoint that agrees with its own hashes and is not what the run would have saved is refused part by part, before
any of it is loaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

from muse_core.component import Use
from muse_core.errors import StorageError
from muse_core.metrics.jsonl import read_rows
from muse_core.storage.checkpoint import Checkpoints, Snapshot
from muse_core.training.checkpointer import Checkpointer
from muse_core.training.due import check_due, expected_carry
from muse_core.training.monitors import MonitorGroup
from muse_core.training.objectives import NextToken
from muse_core.training.optimizers import make_optimizers
from muse_core.training.stop import Stop
from muse_core.training.train_state import Position, StreamState, TrainState
from tests.training.conftest import opened


def first(tensors: dict[str, Any], start: str = "") -> str:
    return next(name for name in sorted(tensors) if name.startswith(start))


def changed(part: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Snapshot], Snapshot]:
    return lambda snapshot: attrs.evolve(snapshot, **{part: change(dict(getattr(snapshot, part)))})


def with_key(part: str, start: str, value: Callable[[Any], Any]) -> Callable[[Snapshot], Snapshot]:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        name = first(tensors, start)
        return tensors | {name: value(tensors[name])}

    return changed(part, change)


def without_key(part: str, start: str) -> Callable[[Snapshot], Snapshot]:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        del tensors[first(tensors, start)]
        return tensors

    return changed(part, change)


def more(part: str, **extra: Any) -> Callable[[Snapshot], Snapshot]:
    return changed(part, lambda tensors: tensors | {key.replace("__", "/"): value for key, value in extra.items()})


WRONG = {
    "a weight's type": (with_key("model", "", lambda value: value.double()), "float64"),
    "a weight's shape": (with_key("model", "", lambda value: value[None]), "has shape"),
    "a weight missing": (without_key("model", ""), "is not in it"),
    "a weight of nobody": (more("model", stranger=torch.ones(2)), "stranger"),
    "a moment of nobody": (more("optimizer", exp_avg__stranger=torch.ones(2)), "optimizer: exp_avg/stranger"),
    "a moment's shape": (with_key("optimizer", "exp_avg/", lambda value: value[None]), "optimizer: exp_avg/"),
    "a moment's type": (with_key("optimizer", "exp_avg/", lambda value: value.long()), "optimizer: exp_avg/"),
    "a moment missing": (without_key("optimizer", "exp_avg_sq/"), "optimizer: exp_avg_sq/.* is missing"),
    "a step that is a table": (with_key("optimizer", "step/", lambda value: value.repeat(3)), "optimizer: step/"),
    "no random state": (without_key("state", "random/cpu"), "random/cpu is missing"),
    "a random state of another size": (with_key("state", "random/cpu", lambda value: value[:7]), "random states"),
    "a random state of numbers": (with_key("state", "random/cpu", lambda value: value.float()), "random states"),
    "a state of nobody": (more("state", stranger=torch.ones(2)), "state: stranger"),
    "a carried state in separate windows": (more("state", carry__0__x=torch.ones(2)), "carry/0/x"),
    "no position": (without_key("json", "position"), "state.json: position is missing"),
    "a position in words": (with_key("json", "position", lambda value: value | {"tokens": "12"}), "whole numbers"),
    "a position elsewhere": (with_key("json", "position", lambda value: value | {"step": 1}), "position.step"),
    "monitors that are not a table": (with_key("json", "monitors", lambda value: [1]), "monitors is not a table"),
    "monitors without the guard": (with_key("json", "monitors", lambda value: {}), "monitors cannot be taken up"),
}


@pytest.fixture
def loop_of(prepare: Any, tmp_path: Path) -> Callable[[dict[str, Any]], Any]:
    """A loop at its start beside the checkpoints of a run of the same recipe."""

    def make(recipe: dict[str, Any]) -> Any:
        setup = prepare(recipe)
        with opened(setup, tmp_path / "run", recipe) as run, Stop(None) as stop:
            from muse_core.building import construct

            use: Use = setup.recipe.stages[0]
            stage = construct(use, setup)
            return run.loop(0, use, stage, stage.objective(setup.model, setup.training_data), stop)

    return make


def checkpointer_of(loop: Any, tmp_path: Path) -> Checkpointer:
    """Of the checkpoints of the run, for this loop's state."""
    return Checkpointer(
        Checkpoints(tmp_path / "run"), loop.state, data=loop.data, incidents=loop.incidents, records=loop.records,
        display=loop.display, digests={},
    )


@pytest.fixture
def three_steps(table: Any, go: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The recipe of a run of three steps in ``tmp_path / "run"``, trained once for all tests of a process."""
    kept, recipe = tmp_path_factory.getbasetemp() / "three-steps", table(train={"steps": 3})
    if kept.exists():
        shutil.copytree(kept, tmp_path / "run")
    else:
        go(recipe)
        shutil.copytree(tmp_path / "run", kept)
    return recipe


@pytest.mark.parametrize("what", WRONG)
def test_every_part_is_checked_before_any_is_loaded(
    what: str, three_steps: dict[str, Any], loop_of: Any, tmp_path: Path
) -> None:
    recipe = three_steps
    damage, said = WRONG[what]
    loop = loop_of(recipe)
    generation, snapshot = Checkpoints(tmp_path / "run").newest()
    before = {name: value.clone() for name, value in loop.state.model.state_dict().items()}
    checkpointer = checkpointer_of(loop, tmp_path)
    with pytest.raises(StorageError, match=said):
        checkpointer.load(generation, damage(snapshot))
    if "monitors without" not in what:
        assert all(torch.equal(value, before[name]) for name, value in loop.state.model.state_dict().items())
    checkpointer.load(generation, snapshot)


def test_another_optimisers_moments_are_named_with_what_to_do(
    three_steps: dict[str, Any], table: Any, loop_of: Any, tmp_path: Path
) -> None:
    loop = loop_of(table(train={"steps": 3, "optimizer": "muon"}))
    generation, snapshot = Checkpoints(tmp_path / "run").newest()
    with pytest.raises(StorageError, match=r"another optimiser: Muon keeps momentum_buffer.*init\.from"):
        checkpointer_of(loop, tmp_path).load(generation, snapshot)


def test_a_carried_state_must_be_one_that_the_model_goes_on_from(
    table: Any, go: Any, loop_of: Any, tmp_path: Path
) -> None:
    recipe = table(train={"steps": 3}, data={"order": "streams"})
    go(recipe)
    loop = loop_of(recipe)
    generation, snapshot = Checkpoints(tmp_path / "run").newest()
    checkpointer = checkpointer_of(loop, tmp_path)
    for damage in (
        with_key("state", "carry/", lambda value: value[:1]),
        with_key("state", "carry/", lambda value: value[..., :-1]),
        without_key("state", "carry/"),
        more("state", carry__x__y=torch.ones(2)),
    ):
        with pytest.raises(StorageError, match="state: carry/"):
            checkpointer.load(generation, damage(snapshot))
    checkpointer.load(generation, snapshot)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_checkpoint_that_is_not_finite_is_passed_over(part: str, table: Any, go: Any, tmp_path: Path) -> None:
    recipe = table(train={"steps": 6})
    go(recipe)
    checkpoints = Checkpoints(tmp_path / "run")
    _, snapshot = checkpoints.newest()
    name = first(getattr(snapshot, part), "exp_avg/" if part == "optimizer" else "")
    tensors = dict(getattr(snapshot, part))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    checkpoints.commit(attrs.evolve(snapshot, **{part: tensors}))
    found = Checkpoints(tmp_path / "run")
    generation, taken = found.newest(quarantine=False)
    assert taken.nonfinite() == "" and taken.step == 6
    assert [one.reason for one in found.rejected] == [f"{part}: {name} is not finite"]
    go(recipe)
    (event,) = [row for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "rejected"]
    assert "is not finite" in event["reason"]


class Wrapped(NextToken):
    """Carries more than the model's state, as a distillation carries its teacher's."""

    def state_after(self, model: Any, inputs: torch.Tensor, state: Any, tokens: Any) -> Any:
        return {"own": model(inputs, None if state is None else state["own"], tokens).state}


def test_what_an_objective_carries_is_compared_with_what_it_says(
    table: Any, go: Any, loop_of: Any, tmp_path: Path
) -> None:
    recipe = table(train={"steps": 3}, data={"order": "streams"})
    go(recipe)
    state = loop_of(recipe).state
    _, snapshot = Checkpoints(tmp_path / "run").newest()
    moved = {re.sub(r"^(carry/\d+)/", r"\1/own/", name): value for name, value in snapshot.state.items()}
    wrapped = attrs.evolve(snapshot, state=moved)
    with pytest.raises(StorageError, match=r"carry/\d+/own/.* is not a state"):
        check_due(state, wrapped)
    state.objective = Wrapped()
    check_due(state, wrapped)
    assert set(expected_carry(state)) == {name for name in moved if name.startswith("carry/")}


def test_a_snapshot_changes_with_nothing_that_training_goes_on_to_change(table: Any, loop_of: Any) -> None:
    """It is written while steps go on; an objective of a plugin may give the very table that it keeps."""
    state, kept = loop_of(table()).state, {"seen": [1]}
    state.objective = SimpleNamespace(state_dict=lambda: kept)
    snapshot = state.snapshot()
    kept["seen"].append(2)
    assert snapshot.json["objective"] == {"seen": [1]}


def test_a_stream_resumes_whatever_depth_its_tokens_have_reached(table: Any, prepare: Any) -> None:
    """Zeros leave after the first block and text reaches the last, and the other way round."""
    exit = {"use": "act", "after": 1, "initial": 0.01}
    recipe = table(train={"steps": 3, "micro_batch": 4}, data={"order": "streams"})
    recipe["model"] |= {"depth": 3, "exit": exit, "block": [{"use": "fast-weights", "heads": 2}]}
    setup = prepare(recipe)
    model, train = setup.model.eval(), setup.recipe.train
    batch = setup.training_data().batch(0)
    zeros = torch.zeros_like(batch.inputs)
    streams = []
    model.blocks[0].register_forward_hook(lambda module, given, output: streams.append(output.x))
    with torch.no_grad():
        model(zeros, None, batch.tokens)
        gate = model.exits.get_submodule("0")
        gate.weight.copy_(2 * torch.nn.functional.rms_norm(streams[0][0].mean(0), gate.weight.shape))
        gate.bias.fill_(-10)
        reached = [model(ids, None, batch.tokens) for ids in (zeros, batch.inputs)]
    assert [one.state["2"] is None for one in reached] == [True, False]
    for output in reached:
        state = TrainState(
            stage=0, train=train, model=model, optimizers=make_optimizers(model, train, lambda name: True),
            monitors=MonitorGroup([]), objective=NextToken(), precision=setup.precision,
            stream_state=StreamState(True), at=Position(step=1),
        )
        state.stream_state.propose(output.state)
        state.stream_state.accept()
        check_due(state, state.snapshot())
        assert {name for name in expected_carry(state) if name.startswith("carry/0/2/")}
    broken = dict(state.snapshot().state)
    del broken[first(broken, "carry/0/2/")]
    with pytest.raises(StorageError, match="carry/0/2/.* is missing"):
        check_due(state, attrs.evolve(state.snapshot(), state=broken))
