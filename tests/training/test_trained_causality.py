"""A layer that sees the future only once its weights have moved passes the gate, and has no held-out number."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from muse_core.component import Component
from muse_core.contracts import Batch, LayerOutput, ModelOutput, Tokens
from muse_core.errors import Halted
from muse_core.evaluation.causality import own_precision_leak
from muse_core.evaluation.causality_trained import later_places
from muse_core.metrics.jsonl import read_rows
from muse_core.model.precision import choose_precision
from muse_core.recipe import check_table
from muse_core.testing.loose import registry_with
from muse_core.training.run import Run
from muse_core.training.setup import Setup, set_up
from muse_core.training.stop import Interrupted
from tests.training.conftest import opened


class LaterOnceMoved(nn.Module):
    """(w − 1) times the next token, w learned from 1 on: nothing at first, and no gradient to the next token. With
    ``chunk``: not that of the next chunk of so many tokens. With ``first``: only the first so many tokens see it."""

    def __init__(self, options: Any, context: Any):
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        later = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        place = torch.arange(x.shape[1])
        seen = place < (self.options.first or x.shape[1])
        if self.options.chunk:
            seen &= (place + 1) % self.options.chunk != 0
        return LayerOutput((self.weight - 1.0) * later * seen[:, None], None)


class LaterInLongRows(nn.Module):
    """The next token from token 24 on, where rows of the training length have come to an end."""

    def __init__(self, options: Any, context: Any):
        super().__init__()

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        later = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        return LayerOutput(torch.where(torch.arange(x.shape[1])[:, None] >= 24, later, 0.0), None)


class NoNumberInLongRows(nn.Module):
    """NaN in rows longer than those of training."""

    def __init__(self, options: Any, context: Any):
        super().__init__()

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        return LayerOutput(x * (float("nan") if x.shape[1] > 24 else 0.0), None)


@attrs.frozen(kw_only=True)
class Options:
    """A layer."""

    chunk: int = 0
    first: int = 0


@pytest.fixture
def trained(table: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a recipe with a block of these layers to its end."""
    layers = {
        "later": LaterOnceMoved, "later-in-long-rows": LaterInLongRows, "no-number-in-long-rows": NoNumberInLongRows
    }
    monkeypatch.setitem(sys.modules, "later_layers", SimpleNamespace(**{x.__name__: x for x in layers.values()}))

    def go(
        *block: Any, change: Callable[[Run], None] = lambda run: None, name: str = "run", **tables: Any
    ) -> Any:
        registry = registry_with(*(
            ("layer", Component(name, options=Options, implementation=f"later_layers:{layer.__name__}"))
            for name, layer in layers.items()
        ))
        recipe = table(model={"block": [*block, {"use": "feed-forward"}]}, **tables)
        setup = set_up(check_table(recipe, registry).recipe, registry)
        with opened(setup, tmp_path / name, recipe) as run:
            change(run)
            return run.go()

    return go


def test_a_leak_that_training_opens_ends_the_run_without_a_number(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(Halted, match=r"blocks\.0\.later lets the output .* did not find it") as halted:
        trained("later")
    assert halted.value.exit_code == 4
    run = tmp_path / "run"
    assert not (run / "summary.json").exists() and not (run / "held_out.json").exists()
    assert list((run / "checkpoints").glob("gen-*")), "the trained weights are kept"
    assert not [row for row in read_rows(run / "metrics.jsonl") if row["event"] == "final"]
    events = list(read_rows(run / "events.jsonl"))
    assert events[-1]["event"] == "halt" and "--suite causality" in events[-1]["reason"]
    with pytest.raises(Halted, match="did not find it"):
        trained("later")  # gone on with, it stays so


def test_a_leak_in_longer_rows_than_those_of_training_ends_it_where_they_are_measured(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    assert trained("later-in-long-rows")["held_out_loss"] > 0
    (tmp_path / "run").rename(tmp_path / "short")
    with pytest.raises(Halted, match=r"blocks\.0\.later-in-long-rows lets the output at token 4[67] "):
        trained("later-in-long-rows", evaluate={"lengths": [1, 4]})


def test_a_leak_behind_the_training_length_is_found_in_rows_of_twice_that(trained: Callable[..., Any]) -> None:
    """Whose middle, from which on it leaks, is no leak's end."""
    with pytest.raises(Halted, match=r"blocks\.0\.later-in-long-rows lets the output at token 3\d "):
        trained("later-in-long-rows", evaluate={"lengths": [1, 2]})


def test_a_leak_is_found_beside_rows_of_another_length_that_are_not_judged(trained: Callable[..., Any]) -> None:
    with pytest.raises(Halted, match=r"blocks\.0\.later lets"):
        trained("later", "no-number-in-long-rows", evaluate={"lengths": [4, 1]})


@pytest.mark.parametrize("chunk", [2, 3, 4, 6, 12])
def test_a_leak_within_chunks_that_the_middle_of_a_row_divides_is_found(
    trained: Callable[..., Any], chunk: int
) -> None:
    with pytest.raises(Halted, match="did not find it"):
        trained({"use": "later", "chunk": chunk})


def test_a_leak_in_the_only_tokens_that_are_scored_is_found(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where held-out text is shorter than a row: the rest is filled up and not counted."""
    batches = Setup.held_out_batches

    def short(self: Setup, *arguments: Any, **named: Any) -> Any:
        for batch in batches(self, *arguments, **named):
            yield batch._replace(loss_mask=batch.loss_mask & (torch.arange(batch.loss_mask.shape[1]) < 6))

    monkeypatch.setattr(Setup, "held_out_batches", short)
    with pytest.raises(Halted, match="did not find it"):
        trained({"use": "later", "first": 6})


def batch_of(rows: int, length: int, scored: int, starts: tuple[int, ...] = (), shared: bool = True) -> Batch:
    """Of equal tokens; ``starts`` of documents in every row, or in the first alone."""
    ids, resets = torch.zeros(rows, length, dtype=torch.long), torch.zeros(rows, length, dtype=torch.bool)
    resets[: rows if shared else 1, list(starts)] = True
    mask = (torch.arange(length) < scored).expand(rows, -1)
    return Batch(ids, ids, mask, Tokens(torch.arange(length).expand(rows, -1), resets=resets if starts else None))


@pytest.mark.parametrize(
    ("batch", "places"),
    [
        (batch_of(2, 64, 64), [32, 49]),
        (batch_of(2, 63, 63), [31, 48]),
        (batch_of(1, 64, 9), [5, 8]),
        (batch_of(2, 64, 64, (0, 16, 32, 48)), [33, 50]),
        (batch_of(2, 64, 64, (0, 16, 32, 48), shared=False), [32, 49]),
        (batch_of(2, 64, 64, tuple(range(40))), [40, 49]),
        (batch_of(1, 64, 64, tuple(range(64))), []),
        (batch_of(1, 3, 3), [1, 2]),
        (batch_of(1, 2, 2), [1]),
        (batch_of(1, 1, 1), []),
        (batch_of(1, 8, 0), [4, 7]),
    ],
)
def test_later_tokens_begin_within_what_is_scored_and_within_a_document(batch: Batch, places: list[int]) -> None:
    assert later_places(batch) == places


class Now(nn.Module):
    """A model whose output is what ``see`` makes of ids (B, N) and of how often it was called before."""

    def __init__(self, see: Callable[[Tensor, int], Tensor]):
        super().__init__()
        self.see, self.calls = see, 0

    def forward(self, ids: Tensor, state: Any, tokens: Any) -> ModelOutput:
        self.calls += 1
        return ModelOutput(self.see(ids, self.calls - 1)[..., None].float(), None, {}, {})

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def looked_at(see: Callable[[Tensor, int], Tensor], **how: Any) -> Any:
    precision = choose_precision(torch.device("cpu"), "fp32")
    ids = torch.arange(12)[None] % how.get("vocabulary", 50)
    return own_precision_leak(Now(see), how.pop("vocabulary", 50), 12, precision, ids=ids, **how)


def test_what_now_and_then_differs_by_itself_is_no_leak_and_a_leak_beside_it_is_one() -> None:
    """As on a GPU whose sums have no order: two passes may agree by chance, and the third not."""

    odd = lambda ids, call: ids.cumsum(1) + (1e-6 if call in (2, 4) else 0.0)  # noqa: E731
    assert looked_at(odd) is None
    leak = looked_at(lambda ids, call: odd(ids, call) + ids.roll(-1, 1))
    assert leak is not None and leak.position == 6 and leak.affected == 5


def test_processes_that_compute_together_make_equal_passes() -> None:
    """Where each pass is a collective, what one alone sees of its noise, of an overflow or of a leak is for all."""
    both, told = threading.Barrier(2, timeout=30), {}

    def judged(see: Callable[[Tensor, int], Tensor], rank: int, found: dict[int, Any]) -> None:
        def agreed(own: bool) -> bool:
            told[rank] = own
            both.wait()
            anyone = told[0] or told[1]
            both.wait()
            return anyone

        model = Now(see)
        ids, precision = torch.arange(12)[None], choose_precision(torch.device("cpu"), "fp32")
        try:
            leak = own_precision_leak(
                model, 50, 12, precision, ids=ids, places=[6, 9], judges_diverged=False, agreed=agreed
            )
        except FloatingPointError:
            leak = None
        found[rank] = model.calls, leak is not None

    def together(*sees: Callable[[Tensor, int], Tensor]) -> list[tuple[int, bool]]:
        found: dict[int, Any] = {}
        threads = [threading.Thread(target=judged, args=(see, rank, found)) for rank, see in enumerate(sees)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[0], found[1]]

    causal = lambda ids, call: ids.cumsum(1)  # noqa: E731
    assert together(causal, causal) == [(4, False)] * 2
    assert together(causal, lambda ids, call: causal(ids, call) + (1e-6 if call in (2, 4) else 0.0)) == [(7, False)] * 2
    assert together(causal, lambda ids, call: ids.roll(-1, 1)) == [(8, True)] * 2
    assert together(causal, lambda ids, call: causal(ids, call) * (1.0 if call < 2 else torch.nan)) == [(3, False)] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_later_tokens_that_make_a_trained_model_overflow_are_not_judged(value: float) -> None:
    overflow = lambda ids, call: torch.where((ids[:, 8:] == 12).any(1, keepdim=True), value, ids)  # noqa: E731
    assert looked_at(overflow) is not None
    with pytest.raises(FloatingPointError):
        looked_at(overflow, judges_diverged=False)


@pytest.mark.parametrize("vocabulary", [2, 3, 4, 50])
def test_a_router_s_few_tokens_hide_no_leak(vocabulary: int) -> None:
    assert looked_at(lambda ids, call: ids.roll(-1, 1), vocabulary=vocabulary, routed=True) is not None
    assert looked_at(lambda ids, call: ids.cumsum(1), vocabulary=vocabulary, routed=True) is None


def test_a_single_token_tells_nothing() -> None:
    assert looked_at(lambda ids, call: ids.roll(-1, 1), vocabulary=1, routed=True) is None


def test_a_causal_run_says_that_it_was_looked_at_and_has_its_bits(
    trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = [{"use": "attention", "heads": 2}, {"use": "fast-weights", "heads": 2}]
    found = trained(*block)
    gates = [row for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "gate"]
    assert [(row["gate"], row.get("weights"), row["passed"], row.get("lengths")) for row in gates] == [
        ("causality", None, True, None), ("causality", "trained", True, [24])
    ]
    (tmp_path / "run").rename(tmp_path / "looked-at")
    monkeypatch.setattr(Setup, "held_out_leak", lambda self, split: (None, []))
    assert trained(*block)["held_out_loss"] == found["held_out_loss"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_diverged_model_is_not_said_to_leak_nor_not_to(
    trained: Callable[..., Any], value: float, tmp_path: Path
) -> None:
    def diverge(run: Run) -> None:
        look = Run._check_trained

        def after(self: Run) -> None:
            with torch.no_grad():
                self.setup.model.blocks[0].get_submodule("attention").output.weight.fill_(value)
            look(self)

        run._check_trained = after.__get__(run)

    summary = trained({"use": "attention", "heads": 2}, change=diverge)
    assert not torch.isfinite(torch.tensor(float(summary["held_out_loss"] or "nan")))
    assert len([row for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "gate"]) == 1


def test_a_signal_during_the_check_leaves_a_run_to_go_on_with(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = trained({"use": "attention", "heads": 2}, name="straight")
    look = Setup.held_out_leak

    def told_to_stop(self: Setup, split: str) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return look(self, split)

    with monkeypatch.context() as patch:
        patch.setattr(Setup, "held_out_leak", told_to_stop)
        with pytest.raises(Interrupted, match="everything is saved"):
            trained({"use": "attention", "heads": 2})
    assert trained({"use": "attention", "heads": 2})["held_out_loss"] == straight["held_out_loss"]
