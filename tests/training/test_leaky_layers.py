"""Layers that see what they may not, each on one path only: every one is refused before training, by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import Batch, LayerOutput, ModelOutput, Tokens
from muse_core.errors import Halted
from muse_core.evaluation.causality import _moved, exact_leak, own_precision_leak
from muse_core.evaluation.causality_gradients import Cut, _weighted, _wrong, cuts, gradient_leak
from muse_core.model.precision import choose_precision
from muse_core.training.setup import Setup

BLOCK = [{"use": "attention", "heads": 2}, {"use": "fast-weights", "heads": 2, "period": 8, "filters": ["snr"]}]


def shifted(x: Tensor, by: int = 1) -> Tensor:
    """The token ``by`` places later, zero where there is none."""
    if by >= x.shape[1]:
        return torch.zeros_like(x)
    return torch.cat([x[:, by:], torch.zeros_like(x[:, :by])], 1)


class Leaky(nn.Module):
    """The layer ``inner`` with a leak beside it."""

    def __init__(self, inner: nn.Module, leak: Callable[..., Tensor | None]):
        super().__init__()
        self.inner = inner
        self.leak = leak

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        step = self.inner(x, state, signals, tokens)
        seen = self.leak(self, x, state, tokens)
        return step if seen is None else step._replace(update=step.update + 0.1 * seen)


def batch_statistics(layer: Any, x: Tensor, state: Any, tokens: Tokens) -> Tensor | None:
    return x - x.mean((0, 1), keepdim=True) if layer.training else None


def dropout_by_the_future(layer: Any, x: Tensor, state: Any, tokens: Tokens) -> Tensor | None:
    """Keeps more of a token where the next is large."""
    if not layer.training:
        return None
    keep = 0.5 + 0.4 * torch.tanh(shifted(x)[..., :1])
    return x * (torch.rand_like(keep) < keep)


def one_value(layer: Any, x: Tensor, state: Any, tokens: Tokens) -> Tensor:
    """Only where the next token's first number is large."""
    later = shifted(x)
    return torch.where(later[..., :1] > 1.0, later, 0.0)


LEAKS: dict[str, Callable[..., Tensor | None]] = {
    "next token": lambda layer, x, state, tokens: shifted(x),
    "with a resets tensor only": lambda layer, x, state, tokens: None if tokens.resets is None else shifted(x),
    "with a document start only": lambda layer, x, state, tokens: (
        None if tokens.resets is None or not tokens.resets[:, 1:].any() else shifted(x)
    ),
    "without a resets tensor only": lambda layer, x, state, tokens: shifted(x) if tokens.resets is None else None,
    "in training mode only": lambda layer, x, state, tokens: shifted(x) if layer.training else None,
    "with gradients enabled only": lambda layer, x, state, tokens: shifted(x) if torch.is_grad_enabled() else None,
    "in training, without a gradient": lambda layer, x, state, tokens: shifted(x).detach() if layer.training else None,
    "at distance 70": lambda layer, x, state, tokens: shifted(x, 70),
    "beyond the second period": lambda layer, x, state, tokens: (
        torch.where(torch.arange(x.shape[1])[:, None] >= 16, shifted(x), 0.0)
    ),
    "batch statistics": batch_statistics,
    "normalisation over time": lambda layer, x, state, tokens: x / (1 + x.std(1, keepdim=True)),
    "one token value": one_value,
    "the last token": lambda layer, x, state, tokens: x[:, -1:].expand_as(x),
    "magnitude 1e-6": lambda layer, x, state, tokens: 1e-5 * shifted(x),
    "with carried state only": lambda layer, x, state, tokens: None if state is None else shifted(x),
    "with carried state, over more than 64 tokens": lambda layer, x, state, tokens: (
        None if state is None or x.shape[1] <= 64 else shifted(x)
    ),
    "as held-out text is read, over more than 64 tokens": lambda layer, x, state, tokens: (
        None if layer.training or tokens.resets is None or not tokens.resets[:, 1:].any() or x.shape[1] <= 64
        else shifted(x)
    ),
    "through dropout": dropout_by_the_future,
    "another row": lambda layer, x, state, tokens: x.roll(1, 0),
}


class Called(nn.Module):
    """A model that shows every token the next one where it is ``called`` so."""

    def __init__(self, called: Callable[[Any, Any, Tokens], bool]):
        super().__init__()
        self.called, self.share = called, nn.Parameter(torch.full((1,), 1e-12, dtype=torch.float64))
        self.factor = 1.0

    def forward(self, x: Tensor, state: Any, tokens: Tokens) -> ModelOutput:
        """The share, which is next to nothing, is woken by the check."""
        seen = self.share * self.factor * shifted(x) if self.called(self, state, tokens) else 0 * self.share
        return ModelOutput(x + seen, {"last": x[:, -1]}, {}, {})

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


CALLED: dict[str, Callable[[Any, Any, Tokens], bool]] = {
    "without document starts": lambda model, state, tokens: tokens.resets is None and not model.training,
    "with resets all False": lambda model, state, tokens: (
        tokens.resets is not None and not tokens.resets.any() and state is None
    ),
    "with a document start inside": lambda model, state, tokens: (
        tokens.resets is not None and bool(tokens.resets.any()) and not model.training
    ),
    "in training": lambda model, state, tokens: model.training and torch.is_grad_enabled(),
    "with carried state": lambda model, state, tokens: state is not None,
}


@pytest.mark.parametrize("how", CALLED)
def test_the_exact_check_alone_finds_a_leak_in_each_way_of_calling(how: str) -> None:
    leak = exact_leak(Called(CALLED[how]), 4, ())
    assert leak is not None and leak.how == how
    assert exact_leak(Called(lambda *_: False), 4, ()) is None


def test_an_output_that_is_no_number_or_rounds_is_judged_as_what_it_is() -> None:
    """In every precision: what is no number counts as moved, and rounding in proportion to a large value does not."""
    damaged = Called(lambda *_: True)
    damaged.factor = float("nan")
    assert exact_leak(damaged, 4, ()) is not None
    large = torch.tensor([[1e6], [1.0]], dtype=torch.float64)
    assert not _moved(large * (1 + 1e-12), large) and _moved(large * (1 + 1e-8), large)
    assert _moved(large[:1], large) and _moved(large, large[:1]), "a token is missing"


class Deciding(nn.Module):
    """A model of which one early token's output depends on ``decided`` of the first token of the later half."""

    def __init__(self, decided: Callable[[int], float]):
        super().__init__()
        self.decided = decided

    def forward(self, ids: Tensor, state: Any, tokens: Any) -> ModelOutput:
        hidden = torch.zeros(*ids.shape, 2)
        hidden[0, 3] = self.decided(int(ids[0, ids.shape[1] // 2]))
        return ModelOutput(hidden, None, {}, {})

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.mark.parametrize(
    ("decided", "routed", "leaks"),
    [
        (lambda token: token % 2, True, False),
        (lambda token: token % 2, False, True),
        (lambda token: token, True, True),
        (lambda token: token, False, True),
        (lambda token: float("nan") if token else 0.0, False, True),
        (lambda token: 1.0, False, False),
    ],
    ids=["tie of a router", "tie without a router", "leak of a router", "leak", "no number", "nothing"],
)
def test_a_tie_of_a_router_has_two_sides_and_a_leak_has_more(decided: Any, routed: bool, leaks: bool) -> None:
    precision = choose_precision(torch.device("cpu"), "fp32")
    found = own_precision_leak(Deciding(decided), 50, 12, precision, routed=routed, ids=torch.zeros(1, 12).long())
    assert (found is not None) == leaks and (found is None or found.affected == 3)


@pytest.fixture
def setup(table: Callable[..., Any], prepare: Callable[[Any], Setup]) -> Setup:
    train = {"sequence_length": 96, "batch_size": 4}
    return prepare(table(model={"width": 32, "depth": 2, "block": BLOCK}, train=train))


IN_STREAMS: dict[str, Callable[..., Tensor | None]] = {
    "in training with carried state": lambda layer, x, state, tokens: (
        None if state is None or not layer.training else shifted(x).detach()
    ),
    "in training with carried state, too small for values": lambda layer, x, state, tokens: (
        None if state is None or not layer.training else 1e-9 * shifted(x)
    ),
}
"""Where rows read on from one step to the next, so that training carries a state."""


@pytest.mark.parametrize("name", LEAKS)
def test_every_leak_is_refused_before_training_and_named(setup: Setup, name: str, monkeypatch: Any) -> None:
    refused_and_named(setup, LEAKS[name], monkeypatch)


@pytest.mark.parametrize("name", IN_STREAMS)
def test_a_leak_behind_a_carried_state_is_refused_where_training_carries_one(
    table: Callable[..., Any], prepare: Callable[[Any], Setup], name: str, monkeypatch: Any
) -> None:
    model, train = {"width": 32, "depth": 2, "block": BLOCK}, {"sequence_length": 96, "batch_size": 4}
    setup = prepare(table(model=model, train=train, data={"order": "streams"}))
    refused_and_named(setup, IN_STREAMS[name], monkeypatch)


def refused_and_named(setup: Setup, leak: Callable[..., Tensor | None], monkeypatch: Any) -> None:
    """The gate refuses the run with this leak in a layer, before it trains, by the layer's name."""
    block = setup.model.blocks[1]

    def leaky(model: Any) -> Any:
        inner = model.blocks[1]
        inner.add_module("attention", Leaky(inner.get_submodule("attention"), leak))
        return model

    block.add_module("attention", Leaky(block.get_submodule("attention"), leak))
    from muse_core.training import setup as module

    build = module.build_model

    def build_leaky(*arguments: Any, **more: Any) -> Any:
        model, kernels = build(*arguments, **more)
        return leaky(model), kernels

    monkeypatch.setattr(module, "build_model", build_leaky)
    with pytest.raises(Halted, match=r"blocks\.1\.attention|the model") as caught:
        setup.causality_gate()
    assert "nothing was trained" in str(caught.value)
    assert "blocks.1.attention" in str(caught.value), str(caught.value)


def test_a_leak_in_a_signal_is_named_by_the_layer_that_publishes_it(
    table: Callable[..., Any], prepare: Callable[[Any], Setup]
) -> None:
    """The layer's own update is causal; what a later layer reads of it is not."""
    block = [
        {"use": "fast-weights", "heads": 2},
        {"use": "resolvent", "heads": 4, "potential": ["hermitian", "memory-feedback"]},
    ]
    setup = prepare(table(model={"width": 32, "depth": 1, "block": block}))

    class LeakySignal(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
            step = self.inner(x, state, signals, tokens)
            name, value = next(iter(step.signals.items()))
            return step._replace(signals={**step.signals, name: value + shifted(value)})

    inner = setup.model.blocks[0]
    inner.add_module("fast-weights", LeakySignal(inner.get_submodule("fast-weights")))
    leak = gradient_leak(setup.model, setup.first_batch(), setup.precision)
    assert leak is not None and leak.layer == "blocks.0.fast-weights"


def test_the_check_leaves_the_model_as_it_was(setup: Setup) -> None:
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}
    random = torch.get_rng_state()
    setup.model.train()
    setup.causality_gate()
    assert setup.model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in setup.model.state_dict().items())
    assert all(parameter.grad is None for parameter in setup.model.parameters())


def test_outputs_before_a_cut_may_have_gradients_to_what_is_before_it_in_their_row_alone() -> None:
    cut = Cut(1, 3)
    allowed = torch.zeros(2, 5, 4)
    allowed[1, :3] = -1.0
    assert _wrong(allowed, cut) is None
    for row, token in ((0, 0), (0, 4), (1, 3)):
        for value in (-2.0, 2.0, float("nan")):
            gradient = allowed.clone()
            gradient[row, token, 3] = value
            found = _wrong(gradient, cut)
            assert found is not None and found[:2] == (row, token)


def test_no_gradients_cancel_in_what_is_followed() -> None:
    """As those of a normalised output would, whose numbers add up to nothing."""
    value = torch.zeros(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(_weighted(value), value)
    assert gradient.min() > 0 and len(gradient.unique()) == 12


def test_one_cut_is_at_a_document_start() -> None:
    resets = torch.zeros(3, 10, dtype=torch.bool)
    resets[:, 0] = True
    resets[1, 4] = True
    ids = torch.zeros(3, 10, dtype=torch.long)
    batch = Batch(ids, ids, torch.ones_like(resets), Tokens(ids, resets=resets))
    assert [tuple(cut) for cut in cuts(batch)] == [(1, 4), (1, 5)]
    assert [tuple(cut) for cut in cuts(batch._replace(tokens=Tokens(ids)))] == [(0, 5)]
