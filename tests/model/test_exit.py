"""Early exit: who leaves, what the head reads, and that leaving changes nothing but that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from muse_core.building import build_model
from muse_core.component import Component, Requirement
from muse_core.contracts import Routing, Tokens
from muse_core.errors import RecipeError
from muse_core.evaluation.causality import exact_leak
from muse_core.model.exit import Present, stay
from muse_core.model.generation import generate
from muse_core.recipe import check_table
from muse_core.testing.loose import registry_with
from muse_core.testing.sequences import cuts

V, N, B, WIDTH = 19, 24, 3, 12


@attrs.frozen(kw_only=True)
class ByLengthOptions:
    """Halts where a token's stream says so, by fixed weights."""

    destinations = 2


class ByStream(nn.Module):
    """h = σ(6 w·x/|x|) with a fixed random w: about as many stay as leave, wherever the model was trained to."""

    def __init__(self, options: Any, context: Any):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("weight", torch.randn(context.width, generator=generator))

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> Routing:
        logit = 6 * nn.functional.normalize(self.scored(x), dim=-1) @ self.weight.to(x.dtype)
        expert = torch.arange(2).expand(*x.shape[:2], 2)
        halting = logit.sigmoid()
        return Routing(expert, torch.stack((1 - halting, halting), -1), torch.stack((-logit, logit), -1))

    def scored(self, x: Tensor) -> Tensor:
        return x


class Peeks(ByStream):
    def scored(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


@attrs.frozen(kw_only=True)
class NeedyOptions:
    """Reads a signal."""

    def requires(self) -> tuple[Requirement, ...]:
        return (Requirement("spectral_shift"),)


ROUTERS = [
    ("router", Component("by-stream", options=ByLengthOptions, implementation=f"{__name__}:ByStream")),
    ("router", Component("peeks", options=ByLengthOptions, implementation=f"{__name__}:Peeks")),
    ("router", Component("needy", options=NeedyOptions, implementation=f"{__name__}:ByStream")),
]
BLOCK = [
    {"use": "resolvent", "heads": 3},
    {"use": "fast-weights", "heads": 2},
    {"use": "attention", "heads": 2},
    {"use": "attention", "name": "near", "heads": 2, "window": 3},
    {"use": "feed-forward"},
]
EXIT = {"use": "by-stream", "threshold": 0.9, "ponder": 0.5}


@pytest.fixture(scope="module")
def registry() -> Any:
    return registry_with(*ROUTERS)


@pytest.fixture
def build(registry: Any) -> Callable[..., Any]:
    def make(exit: Any = EXIT, block: list[Any] = BLOCK, **model: Any) -> Any:
        table = {
            "name": "t",
            "model": {"width": WIDTH, "depth": 4, "block": block} | ({"exit": exit} if exit else {}) | model,
            "train": {"sequence_length": 64},
        }
        built, _ = build_model(check_table(table, registry).recipe, registry, vocabulary_size=V, dtype="float64")
        return built.double().eval()

    return make


def always(destination: int) -> Callable[..., Routing]:
    """A router that sends every token there."""

    def forward(x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> Routing:
        expert = torch.full((*x.shape[:2], 1), destination)
        return Routing(expert, torch.ones_like(x[..., :1]), torch.zeros_like(x[..., :2]))

    return forward


def documents(seed: int) -> tuple[Tensor, Tokens]:
    generator = torch.Generator().manual_seed(seed)
    resets = torch.rand(B, N, generator=generator) < 0.15
    positions = torch.zeros(B, N, dtype=torch.long)
    for t in range(1, N):
        positions[:, t] = torch.where(resets[:, t], 0, positions[:, t - 1] + 1)
    return torch.randint(V, (B, N), generator=generator), Tokens(positions, 0, resets)


@pytest.mark.parametrize("sizes", [(1,), (5, 1, 2), (13,)], ids=["stepwise", "uneven", "two"])
@pytest.mark.parametrize("seed", [1, 2])
def test_whole_chunked_and_stepwise_agree_exactly(build: Callable[..., Any], sizes: tuple[int, ...], seed: int) -> None:
    model = build()
    ids, tokens = documents(seed)
    with torch.no_grad():
        output = model(ids, None, tokens)
        assert 1.2 < output.metrics["exit/blocks"] < 3.8, "the comparison would be empty"
        state, pieces = None, []
        for start, stop in cuts(N, sizes):
            piece = Tokens(tokens.positions[:, start:stop], 0, tokens.resets[:, start:stop])
            part = model(ids[:, start:stop], state, piece)
            state = part.state
            pieces.append(part.hidden)
        assert (torch.cat(pieces, 1) - output.hidden).abs().max() <= 1e-10
        following = model(ids[:, :5], output.state).hidden
        assert (model(ids[:, :5], state).hidden - following).abs().max() <= 1e-10


def test_rows_can_be_permuted_and_padded(build: Callable[..., Any]) -> None:
    model = build()
    ids, tokens = documents(3)
    kept, order = N - 7, [2, 0, 1]
    with torch.no_grad():
        whole = model(ids, None, tokens).hidden
        permuted = model(ids[order], None, Tokens(tokens.positions[order], 0, tokens.resets[order])).hidden
        alone = torch.cat([
            model(ids[[row]], None, Tokens(tokens.positions[[row]], 0, tokens.resets[[row]])).hidden for row in range(B)
        ])
        valid = torch.arange(N).expand(B, -1) < torch.tensor([[N], [kept], [kept - 3]])
        padded = model(ids, None, tokens._replace(valid=valid))
        shorter = model(ids[1:2, :kept], None, Tokens(tokens.positions[1:2, :kept], 0, tokens.resets[1:2, :kept]))
        following = model(ids[:, :4], padded.state).hidden[1:2]
        expected = model(ids[1:2, :4], shorter.state).hidden
    assert (permuted - whole[order]).abs().max() <= 1e-10
    assert (alone - whole).abs().max() <= 1e-10
    assert (padded.hidden[1, :kept] - whole[1, :kept]).abs().max() <= 1e-10
    assert (following - expected).abs().max() <= 1e-10, "padding has written state"


def test_halted_tokens_are_as_if_they_had_not_been_there(build: Callable[..., Any]) -> None:
    """Deeper blocks give those that stay what they give to a text of these tokens alone."""
    model = build({"use": "by-stream", "threshold": 0.5})
    x = torch.randn(1, N, WIDTH, dtype=torch.float64)
    tokens = Tokens(torch.arange(N)[None])
    with torch.no_grad():
        first = model.blocks[0](x, None, {}, tokens)
        routing = model.get_submodule("exits.0")(first.x, first.signals, tokens)
        stays = (routing.weight[0, :, 1] < 0.5).nonzero()[:, 0]
        assert 3 < len(stays) < N - 3
        second = model.blocks[1](first.x[:, stays], None, {}, Tokens(stays[None]))
        recorded = []
        handle = model.blocks[1].register_forward_hook(lambda module, inputs, output: recorded.append(output.x))
        model(x, None, tokens)
        handle.remove()
    assert (recorded[0] - second.x).abs().max() <= 1e-12


def test_what_the_head_reads_is_the_weighted_sum(build: Callable[..., Any]) -> None:
    """A token that halts with certainty after the first block is read there; nothing halts at threshold 1."""
    ids, tokens = documents(4)
    model = build()
    for module in model.exits.children():
        module.forward = always(1)
    with torch.no_grad():
        output = model(ids, None, tokens)
        first = model.blocks[0](model.embedding(ids), None, {}, tokens).x
    assert (output.hidden - model.norm(first)).abs().max() <= 1e-12
    assert output.metrics["exit/blocks"] == 1 and output.state["1"] is None
    assert output.losses["exit/ponder"] == pytest.approx(0.5 * B * N / 4)


def test_a_stack_whose_tokens_never_leave_is_the_stack(build: Callable[..., Any]) -> None:
    ids, tokens = documents(5)
    model, plain = build(), build(exit=None)
    for module in model.exits.children():
        module.forward = always(0)
    with torch.no_grad():
        output = model(ids, None, tokens)
        assert (output.hidden - plain(ids, None, tokens).hidden).abs().max() <= 1e-12
    assert output.metrics["exit/flops_saved_sum"] == 0 and output.losses["exit/ponder"] == pytest.approx(0.5 * B * N)


def test_saved_flops_are_those_of_blocks_not_passed(build: Callable[..., Any]) -> None:
    ids, tokens = documents(6)
    model = build()
    computed = [0] * 4

    def loss_mask(index: int) -> Callable[..., None]:
        return lambda module, inputs, output: computed.__setitem__(index, output.x[..., 0].numel())

    for index, block in enumerate(model.blocks):
        block.register_forward_hook(loss_mask(index))
    with torch.no_grad():
        metrics = model(ids, None, tokens).metrics
    cost = model.costs[0]
    assert cost == 2 * sum(p.numel() for p in model.blocks[0].parameters() if p.ndim == 2)
    assert metrics["exit/flops_spent_sum"] == cost * sum(computed) < 4 * cost * B * N
    assert metrics["exit/flops_spent_sum"] + metrics["exit/flops_saved_sum"] == 4 * cost * B * N


def test_gradients_reach_everything_and_pondering_is_a_loss(build: Callable[..., Any]) -> None:
    model = build({"use": "act", "initial": 0.2}).train()
    ids, tokens = documents(7)
    output = model(ids, None, tokens)
    scores = model.logits(output.hidden)[:, :-1]
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten()) + output.losses["exit/ponder"]
    loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not dead
    assert all(module.bias.grad < 0 for module in model.exits.children()), "halting earlier does not lower the cost"


def test_generation_leaves_early_too(build: Callable[..., Any]) -> None:
    model = build()
    passed: list[int] = []
    model.blocks[3].register_forward_hook(lambda module, inputs, output: passed.append(output.x.shape[1]))
    text = [1, 5, 3]
    with torch.no_grad():
        for token, _ in zip(generate(model, list(text), temperature=0.0), range(12)):
            assert token == int(model.logits(model(torch.tensor([text])).hidden)[0, -1].argmax())
            text.append(token)
    stepwise = generate(model, [1, 5, 3], temperature=0.0)
    next(stepwise)
    passed.clear()
    for _ in range(12):
        next(stepwise)
    assert 0 < len(passed) < 12, "all of the drawn tokens, or none, passed the last block"


def test_the_causality_gate_passes_and_finds_an_exit_that_looks_ahead(build: Callable[..., Any]) -> None:
    assert exact_leak(build(), WIDTH, ()) is None
    leak = exact_leak(build("peeks"), WIDTH, ())
    assert leak is not None and leak.layer.startswith("exits.")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_starts_of_documents_are_handed_on(data: st.DataObject) -> None:
    """Against a loop: a removed start goes to the next token of its row that stays, in this call or a later one."""
    length = data.draw(st.integers(1, 6))
    flags = st.lists(st.booleans(), min_size=2 * length, max_size=2 * length)
    resets, stays = (torch.tensor(data.draw(flags)).view(2, length) for _ in range(2))
    valid = torch.arange(length).expand(2, -1) < torch.tensor([[length], [data.draw(st.integers(0, length))]])
    carried = torch.tensor(data.draw(st.lists(st.booleans(), min_size=2, max_size=2)))
    place = torch.arange(length).expand(2, -1)
    zeros = torch.zeros(2, length)
    tokens = Tokens(place, 0, resets, valid)
    present = Present(place[..., None].double(), {"s": place}, tokens, place, zeros, zeros, zeros.sum())
    kept, pending = stay(present, stays, carried)
    for row in range(2):
        waiting, expected = bool(carried[row]), []
        for t in range(length):
            if not valid[row, t]:
                continue
            waiting |= bool(resets[row, t])
            if stays[row, t]:
                expected.append((t, waiting))
                waiting = False
        count = len(expected)
        assert kept.place[row, :count].tolist() == kept.signals["s"][row, :count].tolist() == [t for t, _ in expected]
        assert kept.tokens.resets[row, :count].tolist() == [start for _, start in expected]
        assert not kept.tokens.resets[row, count:].any()
        assert kept.tokens.valid is None or kept.tokens.valid[row].sum() == count
        assert pending[row] == waiting


def wrong() -> Iterator[tuple[str, Any, list[Any], str]]:
    filtered = [{"use": "fast-weights", "heads": 2, "period": 4, "filters": ["snr"]}]
    yield "filters", EXIT, filtered, "leave the period grid on which snr of fast-weights act"
    yield "signal", "needy", [{"use": "feed-forward"}], "the exit needy reads the signal 'spectral_shift', which no"
    late = [{"use": "feed-forward"}, {"use": "resolvent", "heads": 3, "at": "1:"}]
    yield "late", "needy", late, "provides only later; set after = 2"
    yield "after", EXIT | {"after": 4}, [{"use": "feed-forward"}], "after = 4 leaves no block to skip"
    yield "threshold", EXIT | {"threshold": 1.5}, [{"use": "feed-forward"}], "threshold"
    yield "a layer", "feed-forward", [{"use": "feed-forward"}], "feed-forward"


@pytest.mark.parametrize(("exit", "block", "sentence"), [pytest.param(*case, id=name) for name, *case in wrong()])
def test_wrong_exits_are_refused_by_name(build: Callable[..., Any], exit: Any, block: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        build(exit, block)
