"""``train.cuda_graph``: refused by name where a step cannot be recorded, otherwise the same numbers to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from muse_core import fault_injection
from muse_core.building import construct
from muse_core.errors import RecipeError
from muse_core.metrics.jsonl import read_rows
from muse_core.recipe import check_table
from muse_core.storage.checkpoint import Checkpoints
from muse_core.training import loop as training_loop
from muse_core.training.cuda_graph import MOST, PLAIN, RecordedCalls, captured, form_of
from muse_core.training.loop import Loop
from muse_core.training.objectives import NextToken
from muse_core.training.recordable import require_recordable, require_steady

Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]

MEMORY = {
    "block": [
        {"use": "resolvent", "heads": 4},
        {"use": "fast-weights", "heads": 2, "period": 16, "filters": ["snr"]},
        {"use": "feed-forward"},
    ]
}
ROUTED = {"block": [{"use": "attention", "heads": 2}, {"use": "experts", "router": "mlp"}]}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def refusals(registry: Any, recipe: dict[str, Any], processes: int = 1) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        require_recordable(check_table(recipe, registry).recipe, processes)
    return str(caught.value).splitlines()


def test_a_recipe_that_cannot_be_recorded_is_refused_with_every_reason(table: Table, registry: Any) -> None:
    recipe = table(
        model=ROUTED, train={"cuda_graph": True, "activation_checkpointing": True},
        parallel={"data": 1, "shard": "auto"},
    )
    found = refusals(registry, recipe, processes=2)
    for words in ("device is the CPU, whose 2 processes exchange through gloo", "parallel.shard: FSDP2",
                  "model.dropout: train.activation_checkpointing", "model.block[1].router"):
        assert any(words in line for line in found), (words, found)
    assert all("set train.cuda_graph = false" in line for line in found if line.strip())


def test_nothing_is_refused_that_does_not_ask_for_a_recording(table: Table, registry: Any) -> None:
    require_recordable(check_table(table(model=ROUTED), registry).recipe, processes=2)


def test_stages_with_plans_of_their_own_record_nothing(table: Table, registry: Any) -> None:
    """Their objectives are not next-token training: a run would end at such a stage with what came before it done."""
    asked = table(train={"cuda_graph": True})
    text = SimpleNamespace(tokens=np.arange(9), starts=np.zeros(1, np.int64))
    setup = SimpleNamespace(corpus=SimpleNamespace(split=lambda name: text))
    cvfp = {"model": {"use": "cvfp", "width": 12}, "stages": ["token-embeddings", "fixed-point", "context-fixed"]}
    for more in (cvfp, {"stages": [{"use": "koopman-distil", "teacher": "runs/any"}]}):
        recipe = check_table(asked | more, registry).recipe
        for use in recipe.stages:
            assert construct(use, setup).settings(recipe.train).cuda_graph is False, use.name


def test_a_cpu_run_that_asks_for_a_recording_makes_no_run(table: Table, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from muse_core.cli.run import main
    from muse_core.recipe import to_toml

    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(table(train={"cuda_graph": True})), encoding="utf-8")
    result = CliRunner().invoke(main, [str(path), "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 2 and "train.cuda_graph: it is for a GPU" in result.output
    assert not (tmp_path / "run").exists()


def test_a_run_from_python_is_refused_alike(table: Table, go: Go) -> None:
    with pytest.raises(RecipeError, match="device is the CPU"):
        go(table(train={"cuda_graph": True}))


class Learns(torch.nn.Module):
    """Changes its threshold by what was measured."""

    def update_statistics(self, metrics: dict[str, float], progress: float) -> None:
        self.threshold = progress


@attrs.frozen
class Curriculum:
    """Another objective."""

    step: int = 0


def test_what_python_changes_between_steps_is_refused_by_name(table: Table, prepare: Any) -> None:
    model = prepare(table()).model
    require_steady(model, NextToken())
    with pytest.raises(RecipeError, match="next-token training, and the objective Curriculum"):
        require_steady(model, Curriculum())
    model.blocks[0].threshold = Learns()
    with pytest.raises(RecipeError, match=r"blocks\.0\.threshold \(Learns\)"):
        require_steady(model, NextToken())
    model.blocks[0].threshold.fills_buffers = True
    require_steady(model, NextToken())


FEW_TARGETS = {"use": "mqar", "vocabulary": 32, "pairs": 6, "easier": [1, 2, 3]}
"""A task of which a step has from 4 to 24 targets among 96 tokens."""


def test_steps_whose_targets_vary_have_few_forms_and_one_recording_holds_for_all_of_a_form(
    table: Table, go: Go, losses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as a graph with the first step's inputs and run with those of later ones, as a recording is replayed: a
    number that Python put into it would be the first step's for ever."""
    graphs: dict[tuple[Any, ...], Any] = {}
    targets: dict[tuple[Any, ...], set[float]] = {}
    told: list[float] = []

    def recorded(self: Loop) -> Any:
        def passes(pieces: Any, carried: Any, whole: torch.Tensor) -> Any:
            leaves, form = form_of(list(pieces), list(carried), whole)
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            parameters = self.state.optimizers.names

            def step(*given: torch.Tensor) -> list[torch.Tensor]:
                left = iter(given)
                inputs = [next(left) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
                self._pass(*pytree.tree_unflatten(inputs, form.structure))
                found = [parameter.grad for parameter in parameters.values()]
                self.state.optimizers.zero_grad()
                return found

            key = (str(form.structure), form.leaves)
            if key not in graphs:
                graphs[key] = make_fx(step)(*tensors)
            targets.setdefault(key, set()).add(whole.item())
            packed, proposed = self._pass(pieces, carried, whole)
            for (name, own), found in zip(parameters.items(), graphs[key](*tensors), strict=True):
                torch.testing.assert_close(found, own.grad, rtol=0, atol=0, msg=name)
            told.append(packed.numbers()[0])
            return packed, proposed

        return passes

    monkeypatch.setattr(Loop, "_recorded", recorded)
    go(table(data=FEW_TARGETS, model={"dropout": 0.0, "depth": 1}, train={"steps": 12}))
    assert len(told) == 12 and set.union(*targets.values()) == set(told)
    assert len(targets) <= 3 and max(map(len, targets.values())) > 2, targets


def final_hash(folder: Path) -> str:
    found = Checkpoints(folder).newest()
    assert found is not None
    return found[1].state_hash()


JUDGED = ("step", "loss", "gradient_norm", "gradient_nonfinite", "state_nonfinite", "rollbacks", "learning_rate")


def judged(folder: Path) -> list[list[float]]:
    """What verdicts are made of, and the rate, by step."""
    rows = read_rows(folder / "metrics.jsonl")
    return [[row[name] for name in JUDGED] for row in rows if row["event"] == "train"]


def on_gpu(table: Table, recorded: bool, **tables: Any) -> dict[str, Any]:
    tables["train"] = {"device": "cuda", "steps": 8, "cuda_graph": recorded} | tables.get("train", {})
    return table(**tables)


@GPU
@pytest.mark.parametrize("train", [{}, {"precision": "bf16", "optimizer": "muon"}, {"compile": True},
                                   {"compile": "blocks"}], ids=["fp32", "bf16", "compiled", "blocks"])
@pytest.mark.parametrize("order", ["permuted", "streams"])
@pytest.mark.parametrize("model", [{}, MEMORY], ids=["attention", "memory"])
def test_a_recorded_run_has_the_bits_of_a_plain_one(
    table: Table, go: Go, losses: Any, tmp_path: Path, order: str, model: Any, train: Any
) -> None:
    """Dropout, accumulated gradients and carried state included. A compiled run has these bits in its plain steps, and
    the loss of its first replay but for rounding (once the last bit, on a card that others used); what its gradients
    give after that is only near."""
    if train.get("compile") and (order, model) != ("permuted", MEMORY):
        pytest.skip("compiled once")
    if (order, model) == ("streams", {}):
        pytest.skip("the state of full attention grows")
    if order == "streams":
        train = train | {"sequence_length": 32}  # whole periods, so that all steps are of one form
    for name, recorded in (("plain", False), ("recorded", True)):
        go(on_gpu(table, recorded, data={"order": order, "reset_at_documents": False}, model=model, train=train), name)
    plain, found = losses("plain"), losses("recorded")
    assert len(plain) == 8
    if train.get("compile"):
        assert {step: found[step] for step in range(1, PLAIN + 1)} == {
            step: plain[step] for step in range(1, PLAIN + 1)
        }
        assert found[PLAIN + 1] == pytest.approx(plain[PLAIN + 1], rel=2.0**-22)
        assert found == pytest.approx(plain, rel=1e-3)
        return
    assert found == plain and judged(tmp_path / "recorded") == judged(tmp_path / "plain")
    assert final_hash(tmp_path / "recorded") == final_hash(tmp_path / "plain")


@GPU
@pytest.mark.parametrize("train", [{}, {"micro_batch": 4, "precision": "bf16"}], ids=["pieces", "whole"])
def test_a_recorded_run_of_a_task_whose_targets_vary_has_the_bits_of_a_plain_one(
    table: Table, go: Go, losses: Any, tmp_path: Path, train: Any
) -> None:
    for name, recorded in (("plain", False), ("recorded", True)):
        go(on_gpu(table, recorded, data=FEW_TARGETS, train=train | {"steps": 20}), name)
    assert len(losses("plain")) == 20 and losses("recorded") == losses("plain")
    assert final_hash(tmp_path / "recorded") == final_hash(tmp_path / "plain")


@GPU
def test_a_recorded_run_goes_on_as_a_plain_one(
    table: Table, go: Go, losses: Any, tmp_path: Path, interrupted: Callable[[int], Any]
) -> None:
    """Stopped after five steps and continued."""
    with interrupted(5):
        go(on_gpu(table, True), "recorded")
    go(on_gpu(table, True), "recorded")
    go(on_gpu(table, False), "plain")
    assert losses("recorded") == losses("plain")
    assert final_hash(tmp_path / "recorded") == final_hash(tmp_path / "plain")


def spoil(after: int) -> dict[str, Callable[[Any], Any]]:
    """Makes a weight NaN after so many updates, once."""
    left = {"updates": after}

    def damage(model: torch.nn.Module) -> torch.nn.Module:
        left["updates"] -= 1
        if left["updates"] == 0:
            with torch.no_grad():
                model.norm.weight.fill_(float("nan"))
        return model

    return {"post_step": damage}


@GPU
@pytest.mark.parametrize("train", [{"steps": 10}, {"steps": 14, "precision": "bf16", "optimizer": "muon"}],
                         ids=["adamw", "muon"])
def test_a_rollback_of_a_recorded_run_is_that_of_a_plain_one(
    table: Table, go: Go, losses: Any, tmp_path: Path, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are restored where the recording reads them, and moments that it never saw are the optimiser's.
    Muon's updates are recorded before it and, of other moments, behind it."""
    made: list[RecordedCalls] = []
    monkeypatch.setattr(training_loop, "RecordedCalls", lambda what: made.append(RecordedCalls(what)) or made[-1])
    for name, recorded in (("plain", False), ("recorded", True)):
        with fault_injection.installed(spoil(after=7 if "optimizer" in train else 5)):
            go(on_gpu(table, recorded, train=train), name)
    assert judged(tmp_path / "recorded") == judged(tmp_path / "plain")
    assert [4 * MOST - one.left for one in made] == [0, 2 if "optimizer" in train else 0]
    assert losses("recorded") == losses("plain")
    assert final_hash(tmp_path / "recorded") == final_hash(tmp_path / "plain")


def many_forms(table: Table, **train: Any) -> dict[str, Any]:
    """A period of 36 tokens and segments of 40: steps start at nine places of the period."""
    model = {"block": [{"use": "fast-weights", "heads": 2, "period": 36, "filters": ["snr"]}]}
    return table(data={"order": "streams"}, model=model,
                 train={"sequence_length": 40, "steps": 2 * (MOST + 2), "micro_batch": 4} | train)


def test_the_recipe_of_too_many_forms_trains_where_nothing_is_recorded(table: Table, go: Go, losses: Any) -> None:
    """So that on a GPU the recording alone can be what ends it."""
    go(many_forms(table))
    assert len(losses()) == 2 * (MOST + 2)


@GPU
def test_steps_of_too_many_forms_are_said_to_be_so(table: Table, go: Go) -> None:
    with pytest.raises(RecipeError, match=f"more than {MOST} forms"):
        go(many_forms(table, device="cuda", cuda_graph=True))


@GPU
def test_a_state_that_grows_is_said_to_be_so(table: Table, go: Go) -> None:
    with pytest.raises(RecipeError, match=f"more than {MOST} forms"):
        go(on_gpu(table, True, data={"order": "streams"}))


@GPU
def test_a_layer_that_counts_steps_in_python_ends_the_run_at_the_tenth_launch(
    table: Table, go: Go, losses: Any, monkeypatch: Any
) -> None:
    """The recording keeps the factor of the third step; torch sees nothing of it."""
    from muse_baseline.feed_forward import FeedForward

    forward, updates = FeedForward.forward, []

    def counting(self: Any, x: Any, *more: Any) -> Any:
        return forward(self, x if len(updates) < 5 else 3 * x, *more)

    def count(model: torch.nn.Module) -> torch.nn.Module:
        updates.append(1)
        return model

    monkeypatch.setattr(FeedForward, "forward", counting)
    with fault_injection.installed({"post_step": count}):
        with pytest.raises(RecipeError, match=r"another gradient .* the plain one's 9 launches before"):
            go(on_gpu(table, True, train={"steps": 40}))
    assert len(losses()) == PLAIN + 9


@GPU
def test_a_layer_that_reads_a_value_is_said_to_be_so(table: Table, prepare: Any, go: Go, monkeypatch: Any) -> None:
    from muse_baseline.feed_forward import FeedForward

    forward = FeedForward.forward

    def reading(self: Any, x: Any, *more: Any) -> Any:
        return forward(self, x if x.abs().max() > 0 else x + 1, *more)

    monkeypatch.setattr(FeedForward, "forward", reading)
    with pytest.raises(RecipeError, match=r"this step cannot be recorded.*set train\.cuda_graph = false"):
        go(on_gpu(table, True))


@GPU
@pytest.mark.parametrize("ending", ["a value is read", "something else is raised"])
def test_after_a_recording_that_fails_random_numbers_go_on_as_if_it_had_not_been(ending: str) -> None:
    def function() -> torch.Tensor:
        drawn = torch.rand(4, device="cuda")
        if ending == "a value is read":
            return drawn * float(drawn.sum())
        raise KeyError("another")

    torch.cuda.manual_seed(3)
    expected = [torch.rand(4, device="cuda") for _ in range(2)]
    torch.cuda.manual_seed(3)
    first = torch.rand(4, device="cuda")
    with pytest.raises((RecipeError, KeyError)):
        captured(function, "this step cannot be recorded")
    assert all(map(torch.equal, expected, [first, torch.rand(4, device="cuda")]))
    graph, drawn = captured(lambda: torch.rand(4, device="cuda"), "this step cannot be recorded")
    graph.replay()
    once = drawn.clone()
    graph.replay()
    assert not torch.equal(once, drawn)
