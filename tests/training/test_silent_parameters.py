"""A parameter that no gradient reaches is told early in the run, once, by name; none is that may go without."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, Tokens
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import read_rows
from muse_core.training.silent import NAMED, STEPS, Silent, sentence, watched
from tests.training.conftest import opened

Use = Callable[[Any, Tensor], Tensor]

USES: dict[str, tuple[Use, list[str]]] = {
    "unused": (lambda layer, x: torch.zeros_like(x), ["gate.bias", "gate.weight", "scale"]),
    "detached": (lambda layer, x: layer.gate(x).detach() * layer.scale, ["gate.bias", "gate.weight"]),
    "times zero": (lambda layer, x: layer.gate(x) * layer.scale * 0, ["gate.bias", "gate.weight", "scale"]),
    "rounded": (lambda layer, x: layer.gate(x).round() * layer.scale, ["gate.bias", "gate.weight"]),
    "behind a zero": (lambda layer, x: layer.gate(x) * layer.scale, []),
    "in two of five steps": (lambda layer, x: layer.gate(x) * layer.scale * (1 + layer.calls // 4 % 2), []),
}
"""Title → what a layer with a linear map ``gate`` and a ``scale`` of zeros adds, and what of it learns nothing."""


class Gated(nn.Module):
    """The layer ``inner`` with something beside it."""

    def __init__(self, inner: nn.Module, use: Use):
        super().__init__()
        self.inner, self.use, self.calls = inner, use, 0
        self.gate, self.scale = nn.Linear(32, 32), nn.Parameter(torch.zeros(32))

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        self.calls += self.training
        step = self.inner(x, state, signals, tokens)
        return step._replace(update=step.update + self.use(self, x))


@pytest.fixture
def train(
    table: Callable[..., Any], prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[dict[str, Any]], str]]:
    """A run with this beside the attention of block 0: its warnings, and what it printed."""

    def go(use: Use, *, freeze: bool = False, **tables: Any) -> tuple[list[dict[str, Any]], str]:
        recipe = table(**tables)
        setup = prepare(recipe)
        block = setup.model.blocks[0]
        gated = Gated(block.get_submodule("attention"), use)
        gated.gate.requires_grad_(not freeze)
        block.add_module("attention", gated)
        monkeypatch.setattr(type(setup), "causality_gate", lambda self, warn: "not asked")  # its copy lacks the layer
        said = io.StringIO()
        with opened(setup, tmp_path / "run", recipe, Display(Console(file=said, width=500))) as run:
            run.go()
        rows = read_rows(tmp_path / "run" / "events.jsonl")
        return [row for row in rows if row["event"] == "warning" and "parameters" in row], said.getvalue()

    return go


@pytest.mark.parametrize("title", USES)
def test_what_nothing_reaches_is_told_once_and_by_name(train: Callable[..., Any], title: str) -> None:
    use, silent = USES[title]
    rows, said = train(use)
    full = [f"blocks.0.attention.{name}" for name in silent]
    assert [row["parameters"] for row in rows] == [full] * bool(silent)
    assert said.count("warning: no gradient reached") == bool(silent)
    if silent:
        assert rows[0]["step"] == STEPS - 1 and all(name in said for name in full)


def test_what_is_frozen_is_not_told(train: Callable[..., Any]) -> None:
    assert train(USES["behind a zero"][0], freeze=True)[0] == []


def test_a_model_in_which_tokens_leave_early_is_not_judged(train: Callable[..., Any]) -> None:
    model = {"width": 32, "depth": 2, "block": [{"use": "attention", "heads": 2}, {"use": "feed-forward"}],
             "exit": {"use": "mlp"}}
    assert train(USES["unused"][0], model=model)[0] == []


@pytest.mark.parametrize(
    ("block", "left"),
    [
        ([{"use": "fast-weights", "heads": 2}, {"use": "polarisation"}], ["blocks.0.norms.polarisation."]),
        ([{"use": "experts", "router": "mlp", "experts": 8}], ["blocks.0.experts."]),
    ],
    ids=["a layer that adds nothing", "experts"],
)
def test_what_may_go_without_is_not_watched(
    table: Callable[..., Any], prepare: Any, block: list[dict[str, Any]], left: list[str]
) -> None:
    """Of a layer whose router chooses who computes, nothing is; of one that adds nothing, the norm before it."""
    setup = prepare(table(model={"width": 32, "depth": 1, "block": block}))
    trained = dict(setup.model.named_parameters())
    kept = watched(setup.model, setup.recipe.model, trained)
    assert {name for name in trained if name not in kept} == {
        name for name in trained if name.startswith(tuple(left))
    } != set()
    assert "embedding.weight" in kept


def test_a_model_without_a_stack_that_has_a_router_is_not_watched(table: Callable[..., Any], prepare: Any) -> None:
    block = [{"use": "experts", "router": "mlp", "experts": 8}]
    setup = prepare(table(model={"width": 32, "depth": 1, "block": block}))
    other = nn.Linear(2, 2)
    trained = dict(other.named_parameters())
    assert watched(other, setup.recipe.model, trained) == frozenset()
    assert watched(other, prepare(table()).recipe.model, trained) == {"weight", "bias"}


def seen(*steps: dict[str, float], left: str = "abc", first: int = 0) -> list[tuple[str, ...]]:
    silent = Silent(frozenset(left))
    told = []
    for number, sizes in enumerate(steps, first):
        silent.step(tuple(sizes), torch.tensor(list(sizes.values()), dtype=torch.float64))
        told.append(silent.accepted(number))
    return told


def test_one_gradient_in_the_first_steps_is_enough() -> None:
    nothing: dict[str, float] = {"a": 0.0, "b": 0.0}
    once: dict[str, float] = {"a": 0.0, "b": 1e-200}
    broken: dict[str, float] = {"c": torch.nan}
    assert seen(nothing, once, broken, *[nothing] * 6) == [(), (), (), (), ("a",), (), (), (), ()]
    assert seen(*[nothing] * (STEPS - 1)) == [()] * (STEPS - 1), "too few to judge"
    assert seen(*[nothing] * 9, first=1) == [()] * 9, "the first step was not seen"


def test_a_step_that_is_made_again_is_counted_once() -> None:
    silent = Silent(frozenset("ab"))
    for number in (0, 1, 2, 0, 1, 2, 3, 4):
        silent.step(("a",), torch.tensor([float(number == 2)]))
        told = silent.accepted(number)
    assert told == ("b",)


def test_many_are_counted() -> None:
    names = [f"layer.{number}" for number in range(NAMED + 3)]
    assert f"{names[NAMED - 1]} and 3 more in the first" in sentence(names) and names[NAMED] not in sentence(names)
