"""Blocks that are compiled one by one: equal ones share a graph, and nothing but the time that compiling takes is other
than with the plain model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.parallel.one import ONE
from muse_core.training.compilation import compiled
from muse_core.training.forward import make_forward
from muse_core.training.objectives import NextToken
from muse_core.training.setup import Setup
from tests.training.conftest import TRACERS

Table = Callable[..., dict[str, Any]]
LAYERS = {
    "attention": [{"use": "attention", "heads": 2, "window": 16, "query_key_norm": True}, {"use": "feed-forward"}],
    "fast-weights": [{"use": "convolution"}, {"use": "fast-weights", "heads": 2, "taps": "uniform"}],
    "gated-deltanet": [{"use": "gated-deltanet", "heads": 2}],
    "mamba2": [{"use": "mamba2", "head_size": 16, "states": 8}],
    "resolvent": [{"use": "resolvent", "heads": 4, "potential": ["non-hermitian"]}, {"use": "feed-forward"}],
}


@pytest.fixture(autouse=True)
def _forgets() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def counter(compiled_by: Callable[[Any], None]) -> CompileCounterWithBackend:
    """Counts graphs. Forward and backward are traced as always; making C++ of them would take a minute."""
    counter = CompileCounterWithBackend(TRACERS)
    compiled_by(counter)
    return counter


@pytest.fixture
def make(table: Table, prepare: Callable[[dict[str, Any]], Setup]) -> Callable[..., Any]:
    def of(block: Any, depth: int = 4, **model: Any) -> Any:
        return prepare(table(model={"dropout": 0.0, "depth": depth, "block": block} | model)).model.train()

    return of


def passes(model: Any, *, documents: bool) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Hidden states of a row's two halves, the state carried, and the gradients of each half's pass."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(256, (2, 48), generator=generator)
    found, state = [], None
    model.zero_grad()
    for start in (0, 24):
        piece = ids[:, start : start + 24]
        positions = torch.arange(start, start + 24).expand(2, 24)
        resets = torch.rand(2, 24, generator=generator) < 0.1
        valid = torch.rand(2, 24, generator=generator) < 0.9
        output = model(piece, state, Tokens(positions, resets, valid) if documents else Tokens(positions))
        state = mapped(output.state)
        weights = torch.randn(output.hidden.shape, generator=generator)
        (output.hidden * weights).sum().backward()
        found.append(output.hidden.detach())
    return found, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def mapped(state: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, state)


@pytest.mark.parametrize(
    "kind, documents", [*((kind, True) for kind in LAYERS), ("fast-weights", False), ("mamba2", False)]
)
def test_equal_blocks_share_a_graph_and_compute_what_plain_ones_do(
    make: Callable[..., Any], counter: Any, kind: str, documents: bool
) -> None:
    """A graph for the start of a row and one where a state comes in, however many blocks there are."""
    model = make(LAYERS[kind])
    expected, gradients = passes(model, documents=documents)
    assert compiled(model, "blocks") is model
    found, own = passes(model, documents=documents)
    assert counter.frame_count == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item(), msg=name)


def test_each_kind_of_block_has_a_graph_of_its_own_however_many_there_are(
    make: Callable[..., Any], counter: Any
) -> None:
    """torch makes eight graphs of one piece of code and computes the ninth plainly."""
    kinds = [{"use": "feed-forward", "multiple": 1.0 + index, "name": f"f{index}", "at": f"{index},{index + 9}"}
             for index in range(9)]
    model = compiled(make(kinds, depth=18), "blocks")
    for _ in range(2):
        model(torch.arange(48).view(2, 24)).hidden.sum().backward()
    assert counter.frame_count == 9


def test_a_compiled_block_is_given_one_gradient(
    make: Callable[..., Any], tangents: tuple[Any, list[int]], compiled_by: Callable[[Any], None]
) -> None:
    """That of the stream: a state with a gradient of zeros would be one more for each of its tensors."""
    backend, given = tangents
    compiled_by(backend)
    model = compiled(make(LAYERS["fast-weights"]), "blocks")
    output = model(torch.arange(48).view(2, 24))
    output.hidden.sum().backward()
    assert given == [1]
    assert not any(leaf.requires_grad for leaf in torch.utils._pytree.tree_leaves(output.state))


def test_evaluations_and_hooked_blocks_are_computed_plainly(make: Callable[..., Any], counter: Any) -> None:
    """torch calls no hook that came after it compiled."""
    model, ids = compiled(make(LAYERS["attention"], depth=2), "blocks"), torch.arange(48).view(2, 24)
    with torch.no_grad():
        model(ids)
    model.eval()(ids)
    assert counter.frame_count == 0
    expected = model.train()(ids).hidden
    assert counter.frame_count == 1
    seen: list[str] = []
    inside, around = model.blocks[0].norms["attention"], model.blocks[1]
    handles = [inside.register_forward_hook(lambda *_: seen.append("inside")),
               around.register_forward_hook(lambda *_: seen.append("around"))]
    torch.testing.assert_close(model(ids).hidden, expected)
    assert seen == ["inside", "around"]
    for handle in handles:
        handle.remove()
    model(ids)
    assert len(seen) == 2 and counter.frame_count == 1


def test_a_deep_copy_computes_with_its_own_weights(make: Callable[..., Any], counter: Any) -> None:
    model, ids = compiled(make(LAYERS["attention"], depth=2), "blocks"), torch.arange(48).view(2, 24)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.blocks.parameters():
            parameter.zero_()
    for mode in (True, False):
        hidden = twin.train(mode)(ids).hidden
        torch.testing.assert_close(hidden, twin.norm(twin.embed(ids)))


def test_recomputed_activations_and_a_second_stage_compile_nothing_more(
    table: Table, prepare: Callable[[dict[str, Any]], Setup], counter: Any
) -> None:
    recipe = table(model={"dropout": 0.0, "block": LAYERS["attention"]}, train={"activation_checkpointing": True})
    model = prepare(recipe).model.train()
    expected, gradients = passes(model, documents=False)
    for _ in range(2):
        found, own = passes(compiled(model, "blocks"), documents=False)
        graphs = counter.frame_count
    assert graphs == 2
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item(), msg=name)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(RecipeError, match="train.compile: Linear keeps no list of blocks"):
        compiled(nn.Linear(2, 2), "blocks")


def test_a_forward_that_was_set_on_a_block_is_not_passed_over(make: Callable[..., Any]) -> None:
    model = make(LAYERS["attention"], depth=2)
    model.blocks[1].forward = functools.partial(type(model.blocks[1]).forward, model.blocks[1])
    with pytest.raises(RecipeError, match=r"train.compile: blocks.1 has a forward that was set on it"):
        compiled(model, "blocks")


def test_a_run_that_is_stopped_goes_on_as_a_plain_one(
    table: Table, go: Any, losses: Any, counter: Any, interrupted: Callable[[int], Any]
) -> None:
    """Streams with documents, two kinds of blocks, evaluations and monitors beside them."""
    model = {"dropout": 0.0, "depth": 4, "block": [
        {"use": "attention", "heads": 2, "window": 8, "at": "1,3"}, {"use": "fast-weights", "heads": 2, "at": "0,2"},
    ]}
    monitors = ["gradient-safety", "rollback"]

    def recipe(wanted: Any) -> dict[str, Any]:
        return table(data={"order": "streams"}, model=model, train={"compile": wanted, "sequence_length": 32},
                     evaluate={"every": 2}, monitors=monitors)

    go(recipe(False), "plain")
    with interrupted(5):
        go(recipe("blocks"), "blocks")
    go(recipe("blocks"), "blocks")
    assert len(losses("plain")) == 8
    assert losses("blocks") == pytest.approx(losses("plain"), rel=1e-4)
    assert counter.frame_count <= 8, "of each kind one without and one with a state, before the stop and after"


@pytest.mark.parametrize("wanted", [True, "blocks"])
@pytest.mark.parametrize("converted", [False, True], ids=["same model", "another model"])
def test_each_stage_is_compiled_for_its_own_length(
    table: Table, prepare: Callable[[dict[str, Any]], Setup], counter: Any, wanted: Any, converted: bool
) -> None:
    """torch takes a second length for one of any, and a graph of any length has slower kernels."""
    model: Any = None
    for stage, length in enumerate((16, 32, 24)):
        setup = prepare(table(model={"dropout": 0.0, "depth": 1, "block": ["feed-forward"]},
                              train={"compile": wanted, "sequence_length": length}))
        model = setup.model.train() if converted or model is None else model
        forward = make_forward(model, NextToken(), setup.recipe, ONE)
        forward.model(torch.arange(2 * length).view(2, length)).hidden.sum().backward()
        assert counter.frame_count == stage + 1
        given = [node.meta["example_value"] for node in counter.graphs[-1].graph.nodes if node.op == "placeholder"]
        shapes = [tuple(one.shape) for one in given if isinstance(one, torch.Tensor)]
        assert not [one for one in given if isinstance(one, torch.SymInt)]
        assert any(length in shape for shape in shapes) and all(type(n) is int for shape in shapes for n in shape)
