"""A layer whose state lacks what its outputs depend on is found and named before a run trains; no other is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from muse_core.contracts import LayerOutput
from muse_core.evaluation.carried_state import forgotten, read_across
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import read_rows
from muse_core.model.context import Context
from muse_core.testing import build_component
from tests.training.conftest import opened


class Mean(nn.Module):
    """The mean of what a document has so far. ``keeps``: all | nothing | its sum and not its count | newest token."""

    def __init__(self, keeps: str):
        super().__init__()
        self.keeps = keeps

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Any) -> LayerOutput:
        total = torch.zeros_like(x[:, :1]) if state is None else state["sum"]
        count = torch.zeros_like(x[:, :1, :1]) if state is None else state.get("count", torch.zeros_like(x[:, :1, :1]))
        sums = total + x.cumsum(1)
        counts = count + torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[None, :, None]
        kept = {
            "all": {"sum": sums[:, -1:], "count": counts[:, -1:]},
            "nothing": None,
            "its sum and not its count": {"sum": sums[:, -1:]},
            "newest token": {"sum": x[:, -1:], "count": torch.ones_like(counts[:, -1:])},
        }[self.keeps]
        return LayerOutput(sums / counts, kept)


class Output:
    """Hidden is what the layers made of x."""

    def __init__(self, hidden: Tensor, state: Any):
        self.hidden, self.state = hidden, state


class Two(nn.Module):
    """Two layers on a stream; the head is the identity."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, state: Any, tokens: Any) -> Output:
        states = []
        for number, layer in enumerate(self.layers):
            output = layer(x, None if state is None else state[number], {}, tokens)
            x = x + output.update
            states.append(output.state)
        return Output(x, states)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.mark.parametrize("keeps", ["nothing", "its sum and not its count", "newest token"])
@pytest.mark.parametrize("at", [0, 1])
def test_what_a_state_lacks_is_found_and_its_layer_named(keeps: str, at: int) -> None:
    layers = [Mean("all"), Mean("all")]
    layers[at] = Mean(keeps)
    lost = forgotten(Two(*layers).double(), 8, ())
    assert lost is not None and lost.layer == f"layers.{at}" and lost.size > 1e-2


@pytest.mark.parametrize("periods", [(), (8,), (8, 12)])
def test_a_whole_state_is_not_accused(periods: tuple[int, ...]) -> None:
    assert forgotten(Two(Mean("all"), Mean("all")).double(), 8, periods) is None


def test_outputs_that_are_no_number_in_both_are_no_forgetting() -> None:
    class Nowhere(Mean):
        def forward(self, *given: Any) -> LayerOutput:
            output = super().forward(*given)
            return output._replace(update=output.update * torch.nan)

    assert forgotten(Two(Nowhere("all")).double(), 8, ()) is None


@pytest.mark.parametrize("forgets", [True, False])
def test_a_run_says_so_before_it_trains_and_trains(
    table: Callable[..., Any], prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    from muse_baseline.attention import Attention

    seen: list[Context] = []
    made, called = Attention.__init__, Attention.forward

    def remember(self: Any, options: Any, context: Context) -> None:
        made(self, options, context)
        seen.append(context)
        self.second = len(seen) % 2 == 0  # of two blocks

    def forget(self: Any, x: Tensor, state: Any, signals: Any, tokens: Any) -> LayerOutput:
        return called(self, x, None if forgets and self.second else state, signals, tokens)

    monkeypatch.setattr(Attention, "__init__", remember)
    monkeypatch.setattr(Attention, "forward", forget)
    recipe = table(model={"width": 32, "depth": 2, "block": ["attention", "feed-forward"]})
    said = io.StringIO()
    with opened(prepare(recipe), tmp_path / "run", recipe, Display(Console(file=said, width=400))) as run:
        assert run.go()["steps"] == recipe["train"]["steps"]
    told = [row["reason"] for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "notice"]
    named = [reason.split(" when ")[0] for reason in told if "forgets" in reason]
    assert named == ["blocks.1.attention forgets what it has read"] * forgets
    assert ("warning: blocks.1.attention forgets" in said.getvalue()) == forgets


def test_a_bundled_layer_of_every_kind_of_state_is_whole() -> None:
    for name in ("attention", "fast-weights", "resolvent", "feed-forward"):
        layer = build_component("memory layer" if name == "fast-weights" else "layer", name, width=32).double()
        assert forgotten(Two(layer).double(), 32, ()) is None, name


class Afresh(Mean):
    """The mean of a document, where ``heeds``; of a row otherwise."""

    def __init__(self, heeds: bool, keeps: str = "all"):
        super().__init__(keeps)
        self.heeds = heeds

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Any) -> LayerOutput:
        if not self.heeds or tokens.resets is None or not tokens.resets.any():
            return super().forward(x, state, signals, tokens)
        start = int(tokens.resets[0].nonzero()[0, 0])
        first = super().forward(x[:, :start], state, signals, tokens)
        second = super().forward(x[:, start:], None, signals, tokens)
        return LayerOutput(torch.cat([first.update, second.update], 1), second.state)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("periods", [(), (8,), (8, 12)])
def test_a_layer_that_reads_across_documents_is_found_and_named(at: int, periods: tuple[int, ...]) -> None:
    layers = [Afresh(True), Afresh(True)]
    assert read_across(Two(*layers).double(), 8, periods) is None
    layers[at] = Afresh(False)
    found = read_across(Two(*layers).double(), 8, periods)
    assert found is not None and found.layer == f"layers.{at}" and found.size > 1e-2


def test_no_number_in_both_is_no_reading_across() -> None:
    class Nowhere(Afresh):
        def forward(self, *given: Any) -> LayerOutput:
            output = super().forward(*given)
            return output._replace(update=output.update * torch.nan)

    assert read_across(Two(Nowhere(True)).double(), 8, ()) is None


def test_a_bundled_layer_of_every_kind_of_state_starts_afresh() -> None:
    for name in ("attention", "fast-weights", "resolvent", "feed-forward"):
        layer = build_component("memory layer" if name == "fast-weights" else "layer", name, width=32).double()
        assert read_across(Two(layer).double(), 32, ()) is None, name


@pytest.mark.parametrize(
    ("heeds", "data", "named"),
    [
        (False, {}, True),
        (True, {}, False),
        (False, {"reset_at_documents": False}, False),
        (False, {"use": "mqar", "vocabulary": 32, "pairs": 2}, False),
    ],
    ids=["ignores them", "heeds them", "one text a row", "a task, whose rows are one example"],
)
def test_a_run_says_that_a_layer_ignores_the_starts_of_documents(
    table: Callable[..., Any], prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heeds: bool,
    data: dict[str, Any], named: bool,
) -> None:
    from muse_baseline.attention import Attention

    called = Attention.forward

    def forward(self: Any, x: Tensor, state: Any, signals: Any, tokens: Any) -> LayerOutput:
        return called(self, x, state, signals, tokens if heeds else tokens._replace(resets=None))

    monkeypatch.setattr(Attention, "forward", forward)
    recipe = table(model={"width": 32, "depth": 2, "block": ["attention", "feed-forward"]}, data=data)
    if data.get("use") == "mqar":
        recipe["data"] = data
    said = io.StringIO()
    with opened(prepare(recipe), tmp_path / "run", recipe, Display(Console(file=said, width=600))) as run:
        assert run.go()["steps"] == recipe["train"]["steps"]
    told = [row["reason"] for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "notice"]
    assert [one.split(":")[0] for one in told] == ["blocks.0.attention reads across the start of a document"] * named
    assert ("warning: blocks.0.attention reads across" in said.getvalue()) == named
