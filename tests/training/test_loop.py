"""The loop: stopping anywhere changes nothing, damage never reaches the weights, and it ends when it should."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from muse_core import fault_injection
from muse_core.contracts import Batch, Result
from muse_core.errors import Halted
from muse_core.metrics.jsonl import read_rows
from muse_core.storage.checkpoint import Checkpoints
from muse_core.training.checkpointer import Checkpointer
from muse_core.training.optimizers import make_optimizers
from muse_core.training.schedules import Rates
from muse_core.training.setup import Setup
from muse_core.training.stop import Stop
from muse_core.training.train_state import StreamState
from tests.training.conftest import TRACERS

Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]

MEMORY = {
    "block": [
        {"use": "resolvent", "heads": 4},
        {"use": "fast-weights", "heads": 2, "period": 16, "filters": ["snr"]},
        {"use": "feed-forward"},
    ]
}


def final_hash(folder: Path) -> str:
    found = Checkpoints(folder).newest()
    assert found is not None
    return found[1].state_hash()


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder / "events.jsonl") if row["event"] == kind]


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a stop request appear once so many steps have been done in this attempt."""
    seen = {"steps": 0}

    def requested(self: Stop) -> bool:
        seen["steps"] += 1
        return seen["steps"] >= steps

    monkeypatch.setattr(Stop, "requested", property(requested))


@pytest.mark.parametrize("order", ["permuted", "streams"])
@pytest.mark.parametrize("model", [{}, MEMORY], ids=["attention", "memory"])
def test_a_run_stopped_twice_equals_an_unstopped_one_to_the_last_bit(
    table: Table, go: Go, tmp_path: Path, losses: Any, monkeypatch: pytest.MonkeyPatch, order: str, model: Any
) -> None:
    recipe = table(data={"order": order}, model=model)
    go(recipe, "whole")
    for steps in (3, 2):
        with monkeypatch.context() as patch:
            stop_after(steps, patch)
            assert go(recipe, "pieces")["stopped_by_time"]
    summary = go(recipe, "pieces")
    assert summary["steps"] == 8 and not summary["stopped_by_time"]
    assert losses("pieces") == losses("whole") and len(losses("whole")) == 8
    assert final_hash(tmp_path / "pieces") == final_hash(tmp_path / "whole")
    assert [row["step"] for row in events(tmp_path / "pieces", "resume")] == [3, 5]


STATELESS = [{"use": "attention", "heads": 2, "at": "0"}, {"use": "feed-forward"}]


def test_streams_go_on_where_a_depth_carries_nothing(
    table: Table, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint keeps tensors, and a block of feed-forward layers alone has none in its state."""
    recipe = table(data={"order": "streams"}, model={"block": STATELESS}, train={"steps": 4})
    go(recipe, "whole")
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert go(recipe, "pieces")["stopped_by_time"]
    assert go(recipe, "pieces")["steps"] == 4
    assert final_hash(tmp_path / "pieces") == final_hash(tmp_path / "whole")


def test_two_runs_are_equal_and_another_seed_is_not(table: Table, go: Go, losses: Any) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        go(table(seed=seed), name)
    assert losses("a") == losses("b") != losses("c")


def test_accumulation_changes_nothing_but_rounding(table: Table, go: Go, losses: Any) -> None:
    for name, micro in (("whole", 4), ("pieces", 1)):
        go(table(model={"dropout": 0.0}, train={"micro_batch": micro}), name)
    for step, loss in losses("whole").items():
        assert math.isclose(loss, losses("pieces")[step], rel_tol=2e-4), step


def poison(at: set[int], value: float = math.nan) -> fault_injection.Plan:
    """A plan that makes the loss of certain calls non-finite; calls are counted over the whole run."""
    seen = {"calls": -1}

    def damage(result: Result) -> Result:
        seen["calls"] += 1
        return result._replace(total=result.total * value) if seen["calls"] in at else result

    return {"loss": damage}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_step_is_skipped_before_the_optimiser(
    table: Table, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Step 2 is damaged: weights and moments after it are those before it, and the schedule has not moved."""
    snapshots: dict[int, dict[str, Tensor]] = {}
    original = Checkpointer.commit

    def keep(self: Checkpointer) -> None:
        snapshot = self.state.snapshot()
        snapshots[self.state.at.step] = snapshot.model | snapshot.optimizer
        original(self)

    monkeypatch.setattr(Checkpointer, "commit", keep)
    with fault_injection.installed(poison({4}, value)):
        summary = go(table(checkpoint={"every": 1}))
    assert summary["steps"] == 8 and summary["accepted_steps"] == 7
    assert all(torch.equal(snapshots[2][name], snapshots[3][name]) for name in snapshots[2])
    assert any(not torch.equal(snapshots[3][name], snapshots[4][name]) for name in snapshots[3])
    (event,) = events(tmp_path / "run", "skip")
    assert event["step"] == 2 and event["monitor"] == "finite"


def test_steps_are_those_of_a_plain_loop_over_whole_batches(
    table: Table, go: Go, prepare: Callable[[Any], Setup], tmp_path: Path
) -> None:
    """With labels that do not count, unequally many in the micro-batches, clipped gradients, and a skipped step in the
    warm-up, after which rates go on where they were."""
    train = {"steps": 7, "clip_norm": 0.3, "warmup_steps": 4, "weight_decay": 0.1, "learning_rate": 1e-2}
    recipe = table(model={"dropout": 0.0}, train=train, checkpoint={"every": 100})

    def masked(batch: Batch) -> Batch:
        return batch._replace(loss_mask=batch.loss_mask & (batch.inputs % 3 > 0))

    with fault_injection.installed({"batch": masked} | poison({4})):
        summary = go(recipe)
    setup = prepare(recipe)
    model, data, size = setup.model.train(), setup.training_data(), setup.corpus.byte_lengths
    optimizers, rates = make_optimizers(model, setup.recipe.train, lambda name: True), Rates(setup.recipe.train)
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] == "train"]
    accepted = tokens = 0
    for step, row in enumerate(rows):
        batch = masked(data.batch(step))
        if step != 2:
            counted, hidden = batch.loss_mask, model(batch.inputs, None, batch.tokens).hidden
            loss = F.cross_entropy(model.logits(hidden)[counted], batch.labels[counted])
            loss.backward()
            norm = torch.stack([p.grad.double().norm() for p in model.parameters()]).norm().item()
            assert norm > 0.3, "or else nothing is clipped"
            for parameter in model.parameters():
                parameter.grad.mul_(0.3 / norm)
            optimizers.step(rates(accepted))
            optimizers.zero_grad()
            told = {"loss": loss.item(), "perplexity": loss.exp().item(), "gradient_norm": norm}
            told["bits_per_byte"] = loss.item() * counted.sum().item() / math.log(2) / size[batch.labels[counted]].sum()
            told["learning_rate"] = 1e-2 * rates(accepted)
            assert {key: row[key] for key in told} == pytest.approx(told, rel=1e-4)
            accepted, tokens = accepted + 1, tokens + int(counted.sum())
        assert (row["step"], row["accepted"]) == (step + 1, accepted)
    assert (summary["steps"], summary["accepted_steps"], summary["train_tokens"]) == (7, 6, tokens)
    assert summary["tokens_per_second"] == pytest.approx(tokens / summary["train_seconds"])
    found = Checkpoints(tmp_path / "run").newest()[1].model
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_non_finite_gradient_behind_a_finite_loss_is_caught(table: Table, go: Go, tmp_path: Path) -> None:
    seen = {"calls": -1}

    def damage(model: torch.nn.Module) -> torch.nn.Module:
        seen["calls"] += 1
        if seen["calls"] == 5:
            next(model.parameters()).grad[0, 0] = math.inf
        return model

    with fault_injection.installed({"gradient": damage}):
        summary = go(table())
    assert summary["accepted_steps"] == 7
    assert events(tmp_path / "run", "skip")[0]["step"] == 5


def test_three_damaged_steps_roll_back_and_their_data_are_passed_over(
    table: Table, go: Go, tmp_path: Path, losses: Any
) -> None:
    with fault_injection.installed(poison(set(range(8, 14)))):
        summary = go(table())
    assert summary["steps"] == 8 and summary["rollbacks"] == 1
    (incident,) = events(tmp_path / "run", "incident")
    assert (incident["onset"], incident["step"], incident["target"], incident["data"]) == (4, 6, 3, [4, 7])
    assert all(math.isfinite(loss) for loss in losses().values())


@pytest.mark.parametrize("calls", [{8}, set(range(8, 14))], ids=["skipped", "rolled back"])
def test_of_a_damaged_step_no_stream_carries_anything(
    table: Table, go: Go, tmp_path: Path, losses: Any, monkeypatch: pytest.MonkeyPatch, calls: set[int]
) -> None:
    """A step has two micro-batches, each of which carries one state."""
    accept, taken = StreamState.accept, []
    monkeypatch.setattr(StreamState, "accept", lambda self: (taken.append(len(self._proposed)), accept(self)))
    with fault_injection.installed(poison(calls)):
        go(table(data={"order": "streams"}, train={"log_every": 3}))
    assert taken and set(taken) == {2} and sorted(losses()) == [1, 3, 6, 8]
    found = Checkpoints(tmp_path / "run").newest()[1].state
    assert {name.split("/")[1] for name in found if name.startswith("carry/")} == {"0", "1"}


def test_carried_states_come_back_in_their_order() -> None:
    """Of more than ten micro-batches, too."""
    kept, other = StreamState(True), StreamState(True)
    for number in range(12):
        kept.propose({"x": torch.full((2,), float(number))})
    kept.accept()
    other.load_state_dict(kept.state_dict())
    assert [other.of(number)["x"].tolist() for number in range(12)] == [[float(number)] * 2 for number in range(12)]


def test_run_that_keeps_breaking_halts_after_three_rollbacks(table: Table, go: Go, tmp_path: Path) -> None:
    with fault_injection.installed(poison(set(range(8, 10_000)))), pytest.raises(Halted, match="3 rollbacks") as caught:
        go(table())
    assert caught.value.exit_code == 4
    assert len(events(tmp_path / "run", "incident")) == 3


def test_damage_before_any_good_step_goes_back_to_the_start(table: Table, go: Go, tmp_path: Path) -> None:
    with fault_injection.installed(poison(set(range(0, 6)))):
        assert go(table())["steps"] == 8
    assert events(tmp_path / "run", "incident")[0]["target"] == 0


def test_loss_falls_on_real_text(table: Table, go: Go, losses: Any) -> None:
    go(table(train={"steps": 60, "learning_rate": 1e-2, "sequence_length": 48, "batch_size": 8}))
    values = losses()
    assert values[60] < 0.7 * values[1] and values[1] == pytest.approx(math.log(257), rel=0.05)


@pytest.mark.parametrize("option", ["compile", "activation_checkpointing"])
def test_compiled_and_recomputed_models_learn_the_same(
    table: Table, go: Go, losses: Any, compiled_by: Callable[[Any], None], option: str
) -> None:
    """torch.compile traces forward and backward here as always; making C++ of them would take a minute."""
    compiled_by(TRACERS)
    recipe = {"dropout": 0.0, "depth": 1} if option == "compile" else MEMORY
    go(table(train={"steps": 3}, model=recipe), "plain")
    go(table(train={"steps": 3, option: True}, model=recipe), "other")
    for step, loss in losses("plain").items():
        assert math.isclose(loss, losses("other")[step], rel_tol=1e-4), step


def test_weights_of_another_run_are_the_start(table: Table, go: Go, tmp_path: Path) -> None:
    go(table(), "first")
    go(table(train={"steps": 1, "warmup_steps": 0, "learning_rate": 1e-12}, init={"from": str(tmp_path / "first")}))
    first = Checkpoints(tmp_path / "first").newest()[1].model
    second = Checkpoints(tmp_path / "run").newest()[1].model
    assert all(torch.allclose(first[name], second[name], atol=1e-9) for name in first)


@pytest.mark.parametrize("lowest", [0.06, 0.0005])
def test_a_first_gradient_that_clipping_would_let_drown_all_others_is_named(
    table: Table, go: Go, tmp_path: Path, lowest: float
) -> None:
    """A potential of the hopping's size beside a small Γ + η has resonances, whose gradients are of a high power of its
    inverse: said at the first step, with the tensors; never at the default."""
    resolvent = {"use": "resolvent", "heads": 16, "min_broadening": lowest / 2, "initial_broadening": [lowest, 1.0]}
    model = {"depth": 4, "dropout": 0.0, "block": [resolvent | {"potential": [{"use": "hermitian", "scale": 1.0}]}]}
    go(table(model=model, train={"steps": 1, "warmup_steps": 0, "sequence_length": 192}))
    said = [row["reason"] for row in events(tmp_path / "run", "warning")]
    norm = read_rows(tmp_path / "run" / "metrics.jsonl")
    (first,) = (row["gradient_norm"] for row in norm if row["event"] == "train")
    assert (first > 100) == (lowest < 0.01), first
    if lowest < 0.01:
        (sentence,) = (reason for reason in said if "train.clip_norm" in reason)
        assert f"the gradient's norm at the first step is {first:.3g}" in sentence
        assert "resolvent.potentials.hermitian.potential.weight" in sentence
    else:
        assert not said
