"""A layer that gives NaN is refused before training as what it is, and not as one that sees later tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, ModelOutput, Tokens
from muse_core.errors import Halted
from muse_core.evaluation.causality import Leak, exact_leak, own_precision_leak
from muse_core.evaluation.causality_gradients import Cut, _wrong, gradient_leak
from muse_core.evaluation.not_finite import NotFinite
from muse_core.model.products import limited_gpu
from muse_core.training import setup as module
from muse_core.training.setup import Setup
from tests.training.test_leaky_layers import Called, Leaky, shifted

Seen = Callable[[Any, Tensor, Any, Tokens], Tensor | None]

BROKEN: dict[str, tuple[Seen, int]] = {
    "nothing by nothing": (lambda layer, x, state, tokens: x * 0 / (tokens.positions > 0)[..., None].to(x), 0),
    "logarithms": (lambda layer, x, state, tokens: x.cumsum(1).log().exp(), 0),
    "times NaN": (lambda layer, x, state, tokens: x * torch.nan, 0),
    "infinity": (
        lambda layer, x, state, tokens: torch.where(torch.arange(x.shape[1])[:, None] == 3, torch.inf, x), 3,
    ),
    "late in a row": (
        lambda layer, x, state, tokens: torch.where(torch.arange(x.shape[1])[:, None] == x.shape[1] - 2, torch.nan, x),
        22,
    ),
    "in training": (lambda layer, x, state, tokens: x * torch.nan if layer.training else None, 0),
    "with carried state": (lambda layer, x, state, tokens: None if state is None else x * torch.nan, 0),
}
"""Title → what becomes of x, and the first token of which it is no finite number."""


@pytest.fixture
def setup(table: Callable[..., Any], prepare: Callable[[Any], Setup]) -> Setup:
    return prepare(table())


def put(model: Any, seen: Seen) -> Any:
    block = model.blocks[1]
    block.add_module("attention", Leaky(block.get_submodule("attention"), seen))
    return model


@pytest.mark.parametrize("title", BROKEN)
def test_the_gate_names_it_and_speaks_of_no_leak(setup: Setup, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, position = BROKEN[title]
    put(setup.model, seen)
    build = module.build_model

    def built(*arguments: Any, **more: Any) -> Any:
        model, kernels = build(*arguments, **more)
        return put(model, seen), kernels

    monkeypatch.setattr(module, "build_model", built)
    with pytest.raises(Halted) as caught:
        setup.causality_gate()
    said = str(caught.value)
    place = f"blocks.1.attention gives values that are not finite, first at token {position} (check: "
    assert said.startswith(f"causality gate: {place}"), said
    assert said.endswith("; nothing was trained.") and "depend on another row" not in said and "targets" not in said


@pytest.mark.parametrize("title", BROKEN)
def test_so_do_the_checks_one_by_one(setup: Setup, title: str) -> None:
    seen, position = BROKEN[title]
    model = put(setup.model, seen)
    how = {"training": title == "in training", "period": 1 if title == "with carried state" else None}
    own = own_precision_leak(model, 257, 24, setup.precision, **how)
    assert isinstance(own, NotFinite) and (own.layer, own.position) == ("blocks.1.attention", position)
    exact = exact_leak(model.double(), 32, ())
    assert isinstance(exact, NotFinite) and (exact.layer, exact.position) == ("blocks.1.attention", position)


@pytest.mark.parametrize(
    "device,share,said",
    [("cuda", "20", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE is 20 here"), ("cuda", None, ""), ("cpu", "20", "")],
)
def test_a_limited_gpu_is_named(device: str, share: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if share is None:
        monkeypatch.delenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", raising=False)
    else:
        monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", share)
    found = limited_gpu(torch.device(device))
    assert said in found and bool(found) == bool(said)


class EverySecond(nn.Module):
    """Gives no numbers in every second call, as arithmetic that goes wrong once in a while does."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        step = self.inner(x, state, signals, tokens)
        self.calls += 1
        return step if self.calls % 2 else step._replace(update=step.update * torch.nan)


def test_one_of_two_equal_passes_without_numbers_is_named(setup: Setup) -> None:
    block = setup.model.blocks[1]
    block.add_module("attention", EverySecond(block.get_submodule("attention")))
    found = own_precision_leak(setup.model, 257, 24, setup.precision)
    assert isinstance(found, NotFinite) and (found.layer, found.position) == ("the model", 0)
    assert "(check: own precision, in one of two equal passes)" in str(found)


class Rooted(nn.Module):
    """Finite numbers whose gradients are not: the root of what is nothing, of all tokens."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        step = self.inner(x, state, signals, tokens)
        return step._replace(update=step.update + (0.0 * x).square().sum((1, 2), keepdim=True).sqrt())


def test_a_gradient_that_is_no_number_is_no_leak(setup: Setup) -> None:
    block = setup.model.blocks[1]
    block.add_module("attention", Rooted(block.get_submodule("attention")))
    found = gradient_leak(setup.model, setup.first_batch(), setup.precision)
    assert isinstance(found, NotFinite) and found.layer == "blocks.1.attention"
    assert "gives gradients that are not finite, first at token" in str(found)


def test_a_finite_gradient_to_a_later_token_comes_before_one_that_is_no_number() -> None:
    gradient = torch.zeros(1, 6, 2)
    gradient[0, 3, 0], gradient[0, 5, 0] = torch.nan, 2.0
    assert _wrong(gradient, Cut(0, 2)) == (0, 5, 2.0)


class Large(Called):
    """A model whose output is no number where the next token is large, as it is once the check has changed it."""

    def forward(self, x: Tensor, state: Any, tokens: Tokens) -> ModelOutput:
        return ModelOutput(torch.where(shifted(x).abs() > 8, torch.nan, x), None, {}, {})


def test_a_later_token_that_makes_an_earlier_output_no_number_is_a_leak() -> None:
    """With the inputs as they are, all numbers are finite."""
    found = exact_leak(Large(lambda *_: True), 4, ())
    assert isinstance(found, Leak) and found.kind == "later token"
