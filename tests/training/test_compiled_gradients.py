"""Before its first step a run compares gradients of compiled code with the plain model's. Nothing else is changed by
that, and a compiler that changes a gradient ends the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from muse_baseline.feed_forward import FeedForward
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend

from muse_core.errors import Halted
from muse_core.metrics.jsonl import read_rows
from muse_core.storage.checkpoint import Checkpoints
from muse_core.training import loop
from tests.training.conftest import TRACERS

Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]


class Scaled(torch.autograd.Function):
    """The identity, and the gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


@pytest.fixture(autouse=True)
def _traced(compiled_by: Callable[[Any], None]) -> Iterator[None]:
    """Forward and backward are traced as always; making C++ of them would take a minute."""
    torch.compiler.reset()
    compiled_by(TRACERS)
    yield
    torch.compiler.reset()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """``faulty(factor)``: where feed-forward layers are compiled, gradients to their inputs are times a factor."""
    plain = FeedForward.forward

    def set_factor(factor: float) -> None:
        def forward(self: Any, x: Tensor, *rest: Any) -> Any:
            return plain(self, Scaled.apply(x, factor) if torch.compiler.is_compiling() else x, *rest)

        monkeypatch.setattr(FeedForward, "forward", forward)

    return set_factor


def gates(folder: Path) -> list[dict[str, Any]]:
    rows = read_rows(folder / "events.jsonl")
    return [row for row in rows if row["event"] == "gate" and row["gate"] == "compiled gradients"]


@pytest.mark.parametrize(
    ("wanted", "factor", "precision"),
    [("blocks", 0.0, "bf16"), ("blocks", 1.1, "fp32"), (True, 0.0, "fp32"), (True, 0.9, "fp32")],
)
def test_a_layer_whose_gradient_compiling_changes_is_refused_by_name(
    table: Table, go: Go, tmp_path: Path, faulty: Any, wanted: Any, factor: float, precision: str
) -> None:
    """All that is before the layer has another gradient, and what follows it the right one."""
    faulty(factor)
    with pytest.raises(Halted, match="train.compile changes those of") as refused:
        go(table(model={"depth": 1, "dropout": 0.0}, train={"compile": wanted, "precision": precision}))
    told = str(refused.value)
    assert "nearest to it is blocks.0.norms.feed-forward.weight" in told, told
    assert "blocks.0.attention" in told and "(" in told and "train.compile = false" in told
    assert "blocks.0.feed-forward" not in told
    assert refused.value.exit_code == 4
    assert not gates(tmp_path / "run")
    assert not [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] == "train"]


@pytest.fixture
def _starts_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output of feed-forward layers."""
    made = FeedForward.__init__

    def zeroed(self: Any, *given: Any) -> None:
        made(self, *given)
        torch.nn.init.zeros_(self.output.weight)

    monkeypatch.setattr(FeedForward, "__init__", zeroed)


@pytest.mark.usefixtures("_starts_at_zero")
def test_a_gradient_lost_behind_a_projection_that_starts_at_zero_is_found_and_the_run_goes_on_once_it_is_not(
    table: Table, go: Go, tmp_path: Path, faulty: Any
) -> None:
    """Without noise every gradient before it is zero, compiled and plain."""
    faulty(0.0)
    model = {"depth": 1, "dropout": 0.0, "block": [{"use": "feed-forward"}]}
    recipe = table(model=model, train={"compile": "blocks", "steps": 2})
    with pytest.raises(Halted, match="norms.feed-forward.weight"):
        go(recipe)
    faulty(1.0)
    torch.compiler.reset()
    assert go(recipe)["steps"] == 2
    (row,) = gates(tmp_path / "run")
    assert row["passed"] is True and row["step"] == 0


KINDS = {
    "blocks": ({"compile": "blocks"}, [{"use": "attention", "heads": 2, "window": 8}, {"use": "feed-forward"}]),
    "whole, bf16": ({"compile": True, "precision": "bf16"}, [{"use": "mamba2", "head_size": 16, "states": 8}]),
}


@pytest.mark.usefixtures("_starts_at_zero")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_bits_of_one_that_was_not_checked_also_when_it_was_stopped(
    table: Table, go: Go, losses: Any, tmp_path: Path, interrupted: Callable[[int], Any], kind: str
) -> None:
    """Streams with documents and dropout; feed-forward's output starts at zero and is other meanwhile."""
    train, block = KINDS[kind]
    for name in ("checked", "unchecked"):
        recipe = table(
            data={"order": "streams"}, model={"depth": 1, "dropout": 0.1, "block": block},
            train=train | {"steps": 5, "check_compiled": name == "checked"},
        )
        if name == "checked":
            with interrupted(3):
                go(recipe, name)
        go(recipe, name)
    assert losses("checked") == losses("unchecked") and len(losses("checked")) == 5
    hashes = [Checkpoints(tmp_path / name).newest()[0].state_hash for name in ("checked", "unchecked")]
    assert hashes[0] == hashes[1]
    assert not gates(tmp_path / "unchecked")
    first, second = gates(tmp_path / "checked")
    assert first["step"] == 0 < second["step"]
    for row in (first, second):
        assert row["passed"] is True
        assert not row["traced"] or kind != "blocks"  # in bf16 rounding alone is enough to ask the trace
        assert row["largest"] <= row["allowed"] < 0.2 and row["unknown"] == 0 < row["parameters"]


def test_of_code_that_draws_other_random_numbers_the_trace_is_compared(
    table: Table, go: Go, tmp_path: Path, compiled_by: Callable[[Any], None], faulty: Any
) -> None:
    """As torch's own compiler does."""

    def other_numbers(graph: Any, inputs: Any) -> Any:
        function = lookup_backend("aot_eager")(graph, inputs)

        def run(*given: Any) -> Any:
            torch.rand(1)
            return function(*given)

        return run

    compiled_by(other_numbers)
    recipe = table(model={"depth": 1, "dropout": 0.5}, train={"compile": "blocks", "steps": 1})
    go(recipe)
    (row,) = gates(tmp_path / "run")
    assert row["traced"] is True and row["largest"] <= 1e-2
    faulty(0.0)
    torch.compiler.reset()
    with pytest.raises(Halted, match="norms.feed-forward.weight"):
        go(recipe, "other")


def test_a_plain_model_that_does_not_fit_is_said_to_be_unchecked(
    table: Table, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    plain = FeedForward.forward

    def forward(self: Any, x: Tensor, *rest: Any) -> Any:
        if self.training and not torch.compiler.is_compiling():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, x, *rest)

    check = loop.check_compiled

    def without_memory(*given: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(FeedForward, "forward", forward)
            return check(*given)

    monkeypatch.setattr(loop, "check_compiled", without_memory)
    go(table(model={"depth": 1, "dropout": 0.0}, train={"compile": "blocks", "steps": 1}))
    (row,) = gates(tmp_path / "run")
    assert row["passed"] is None
    said = [row["reason"] for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "warning"]
    assert any("compiled gradients were not checked" in reason for reason in said)
