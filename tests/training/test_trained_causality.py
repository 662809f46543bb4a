"""A layer that sees the future only once its weights have moved passes the gate, and has no held-out number."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from muse_core.component import Component
from muse_core.contracts import LayerOutput, Tokens
from muse_core.errors import Halted
from muse_core.metrics.jsonl import read_rows
from muse_core.recipe import check_table
from muse_core.testing.loose import registry_with
from muse_core.training.run import Run
from muse_core.training.setup import Setup, set_up
from tests.training.conftest import opened


class LaterOnceMoved(nn.Module):
    """(w − 1) times the next token, w learned from 1 on: nothing at first, and no gradient to the next token."""

    def __init__(self, options: Any, context: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        later = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        return LayerOutput((self.weight - 1.0) * later, None)


class LaterInLongRows(nn.Module):
    """The next token from token 24 on, where rows of the training length have come to an end."""

    def __init__(self, options: Any, context: Any):
        super().__init__()

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        later = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        return LayerOutput(torch.where(torch.arange(x.shape[1])[:, None] >= 24, later, 0.0), None)


@attrs.frozen(kw_only=True)
class Options:
    """A layer."""


@pytest.fixture
def trained(table: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a recipe with a block of these layers to its end."""
    layers = {"later": LaterOnceMoved, "later-in-long-rows": LaterInLongRows}
    monkeypatch.setitem(sys.modules, "later_layers", SimpleNamespace(**{x.__name__: x for x in layers.values()}))

    def go(*block: Any, change: Callable[[Run], None] = lambda run: None, **tables: Any) -> Any:
        registry = registry_with(*(
            ("layer", Component(name, options=Options, implementation=f"later_layers:{layer.__name__}"))
            for name, layer in layers.items()
        ))
        recipe = table(model={"block": [*block, {"use": "feed-forward"}]}, **tables)
        setup = set_up(check_table(recipe, registry).recipe, registry)
        with opened(setup, tmp_path / "run", recipe) as run:
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


def test_a_causal_run_says_that_it_was_looked_at_and_has_its_bits(
    trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = [{"use": "attention", "heads": 2}, {"use": "fast-weights", "heads": 2}]
    found = trained(*block)
    gates = [row for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "gate"]
    assert [(row["gate"], row.get("weights"), row["passed"]) for row in gates] == [
        ("causality", None, True), ("causality", "trained", True)
    ]
    (tmp_path / "run").rename(tmp_path / "looked-at")
    monkeypatch.setattr(Setup, "held_out_leak", lambda self, split: None)
    assert trained(*block)["held_out_loss"] == found["held_out_loss"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_diverged_model_is_not_said_to_leak(trained: Callable[..., Any], value: float) -> None:
    def diverge(run: Run) -> None:
        look = Run._check_trained

        def after(self: Run) -> None:
            with torch.no_grad():
                self.setup.model.blocks[0].get_submodule("attention").output.weight.fill_(value)
            look(self)

        run._check_trained = after.__get__(run)

    summary = trained({"use": "attention", "heads": 2}, change=diverge)
    assert not torch.isfinite(torch.tensor(float(summary["held_out_loss"] or "nan")))
