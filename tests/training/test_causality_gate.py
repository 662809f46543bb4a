"""A planted leak of one token is caught every time, and the layer that leaks is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput
from muse_core.errors import Halted
from muse_core.evaluation.causality import as_called, exact_leak, own_precision_leak, probe_length, probe_positions
from muse_core.evaluation.causality_gradients import gradient_leak
from muse_core.training.setup import Setup


class Leaky(nn.Module):
    """A layer that adds to each update a little of what ``see`` shows it."""

    def __init__(self, inner: nn.Module, see: Callable[[Tensor], Tensor], strength: float):
        super().__init__()
        self.inner = inner
        self.see = see
        self.strength = nn.Parameter(torch.tensor([strength]))

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Any) -> LayerOutput:
        step = self.inner(x, state, signals, tokens)
        return step._replace(update=step.update + self.strength * self.see(x))


def next_token(x: Tensor) -> Tensor:
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


def across_period(x: Tensor) -> Tensor:
    """Token 15 alone sees token 16: a leak at the edge of a period of 16."""
    seen = torch.zeros_like(x)
    if x.shape[1] > 16:
        seen[:, 15] = x[:, 16]
    return seen


def whole_mean(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True).expand_as(x)


def previous_row(x: Tensor) -> Tensor:
    return x.roll(1, 0) if x.shape[0] > 1 else torch.zeros_like(x)


@pytest.fixture
def setup(table: Callable[..., Any], prepare: Callable[[Any], Setup]) -> Setup:
    block = [{"use": "attention", "heads": 2}, {"use": "feed-forward"}]
    return prepare(table(model={"width": 32, "depth": 2, "block": block}))


def with_leak(
    setup: Setup, see: Callable[[Tensor], Tensor], strength: float, *, block: int = 1, name: str = "attention"
) -> nn.Module:
    chosen = setup.model.blocks[block]
    chosen.add_module(name, Leaky(chosen.get_submodule(name), see, strength))
    return setup.model


@pytest.mark.parametrize("see", [next_token, across_period, whole_mean])
@pytest.mark.parametrize("strength", [1e-6, 0.0])
def test_leak_in_time_is_found_and_named_even_behind_a_zero(
    setup: Setup, see: Callable[[Tensor], Tensor], strength: float
) -> None:
    leak = exact_leak(with_leak(setup, see, strength).double(), 32, (16,))
    assert leak is not None and leak.kind == "later token"
    assert leak.layer == "blocks.1.attention"
    assert leak.affected < leak.position


def test_leak_between_rows_is_found(setup: Setup) -> None:
    leak = exact_leak(with_leak(setup, previous_row, 1e-6).double(), 32, ())
    assert leak is not None and leak.kind == "other row" and leak.layer == "blocks.1.attention"


def test_causal_model_passes_both_checks(setup: Setup) -> None:
    assert own_precision_leak(setup.model, 257, 24, setup.precision) is None
    assert exact_leak(setup.model.double(), 32, (8, 16)) is None


def test_rows_of_one_token_have_nothing_to_leak(setup: Setup) -> None:
    assert own_precision_leak(setup.model, 257, 1, setup.precision) is None
    assert own_precision_leak(setup.model, 257, 2, setup.precision) is None


EXIT = {"use": "act", "halting": "learned", "after": 1, "threshold": 0.3}
"""At which some tokens leave with weights that nothing has trained."""


@pytest.mark.parametrize("order", ["permuted", "streams"])
def test_dropout_beside_an_early_exit_is_no_leak(
    table: Callable[..., Any], prepare: Callable[[Any], Setup], order: str
) -> None:
    """How many tokens stay decides which numbers are drawn for each."""
    setup = prepare(table(model={"depth": 4, "exit": EXIT}, data={"order": order}, seed=3))
    batch = setup.first_batch()
    with as_called(setup.model, True), setup.model.exits.closed():
        whole = setup.model(batch.inputs, None, batch.tokens).metrics["exit/blocks"]
    with as_called(setup.model, True):
        left = setup.model(batch.inputs, None, batch.tokens).metrics["exit/blocks"]
    assert left < whole, "tokens leave"
    setup.causality_gate()
    assert setup.model.exits.open


def in_training(x: Tensor) -> Tensor:
    return next_token(x) if torch.is_grad_enabled() else torch.zeros_like(x)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("see", [next_token, in_training, previous_row])
def test_a_leak_beside_an_early_exit_is_found(
    table: Callable[..., Any], prepare: Callable[[Any], Setup], see: Any, block: int, dropout: float
) -> None:
    setup = prepare(table(model={"depth": 4, "exit": EXIT, "dropout": dropout}))
    model = with_leak(setup, see, 1.0, block=block)
    if see is not previous_row:
        training = see is in_training
        assert own_precision_leak(model, 257, 24, setup.precision, routed=True, training=training) is not None
    leak = exact_leak(model.double(), 32, ())
    assert leak is not None and leak.layer == f"blocks.{block}.attention"


class Counting(nn.Module):
    """A layer that counts its calls in training, as running statistics do."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Any) -> LayerOutput:
        if self.training:
            self.calls += 1
        return self.inner(x, state, signals, tokens)


def test_buffers_are_what_they_were_before_the_checks(setup: Setup) -> None:
    chosen = setup.model.blocks[0]
    chosen.add_module("attention", Counting(chosen.attention))
    batch = setup.training_data().batch(0)
    assert own_precision_leak(setup.model, 257, 24, setup.precision, training=True) is None
    assert gradient_leak(setup.model, batch, setup.precision) is None
    assert chosen.attention.calls.item() == 0, "the run would begin with statistics of the check"
    with as_called(setup.model, True):
        setup.model(batch.inputs, None, batch.tokens)
        assert chosen.attention.calls.item() == 1, "or else the layer counts nothing"


@pytest.fixture
def resonant(table: Callable[..., Any], prepare: Callable[[Any], Setup]) -> Setup:
    """Six resolvents with V of one hopping and Γ + η from 1e-5: products of matrices of another number of rows, which
    round otherwise, move an output by 4e-8."""
    potential = {"use": "non-hermitian", "scale": 1.0, "initial_decay": [1e-6, 1e-6]}
    resolvent = {
        "use": "resolvent", "heads": 32, "potential": [potential],
        "min_broadening": 5e-6, "initial_broadening": [9e-6, 0.1],
    }
    block = [resolvent, {"use": "fast-weights", "heads": 2}, {"use": "feed-forward"}]
    return prepare(table(model={"width": 64, "depth": 6, "dropout": 0.0, "block": block}))


def test_rounding_that_resonances_amplify_is_no_leak(resonant: Setup) -> None:
    assert exact_leak(resonant.model.double(), 64, ()) is None


@pytest.mark.parametrize("see", [next_token, whole_mean, previous_row])
@pytest.mark.parametrize("where", [(0, "resolvent"), (5, "feed-forward")], ids=["first layer", "last layer"])
def test_a_leak_of_a_millionth_is_found_beside_resonances(
    resonant: Setup, see: Callable[[Tensor], Tensor], where: tuple[int, str]
) -> None:
    block, name = where
    # The strength itself is a parameter that the check would wake.
    model = with_leak(resonant, lambda x: 1e-6 * see(x), 1.0, block=block, name=name)
    leak = exact_leak(model.double(), 64, ())
    assert leak is not None and leak.layer == f"blocks.{block}.{name}"


def test_leak_in_the_runs_own_precision_is_found(setup: Setup) -> None:
    leak = own_precision_leak(with_leak(setup, next_token, 1e-3), 257, 24, setup.precision)
    assert leak is not None and leak.affected == 11 and leak.position == 12


def test_gate_stops_a_run_with_exit_code_4(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.causality_gate()
    with_leak(setup, next_token, 1e-3)
    monkeypatch.setattr(Setup, "_exact_leak", lambda self, warn: None)
    with pytest.raises(Halted, match="nothing was trained") as caught:
        setup.causality_gate()
    assert caught.value.exit_code == 4


def test_probe_reaches_past_two_periods_and_touches_their_edges() -> None:
    assert probe_length((16, 64)) > 2 * 64
    assert {0, 15, 16, 17, 63, 64, 65, probe_length((16, 64)) - 1} <= set(
        probe_positions(probe_length((16, 64)), (16, 64))
    )
