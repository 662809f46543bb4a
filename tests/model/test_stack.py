"""The stack: one pass, passes over pieces and single tokens agree; what it is made of is what the recipe says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_core.building import build_model, initialize
from muse_core.component import Use
from muse_core.contracts import Tokens
from muse_core.errors import PluginError, RecipeError
from muse_core.model.plan import periods
from muse_core.model.roles import ROLES, parameter_roles
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table
from muse_core.recipe.schema import Matched

V, N, B = 19, 45, 3

EVERYTHING = [
    {"use": "resolvent", "heads": 3, "phase": "shift", "potential": ["non-hermitian", "memory-feedback"]},
    {"use": "fast-weights", "heads": 2, "period": 8, "filters": ["snr"]},
    {"use": "fast-weights", "name": "slow", "heads": 2, "rule": "hebbian", "period": 12, "filters": ["snr"]},
    {"use": "attention", "heads": 2, "at": "::2"},
    {"use": "attention", "name": "near", "heads": 2, "window": 5},
    {"use": "feed-forward"},
]


@pytest.fixture(scope="module")
def registry() -> Any:
    return load_plugins()


@pytest.fixture
def build(registry: Any) -> Callable[..., Any]:
    def make(block: list[Any], *, dtype: torch.dtype = torch.float64, seed: int = 0, **tables: Any) -> Any:
        table = {
            "name": "t",
            "seed": seed,
            "model": {"width": 12, "depth": 3, "block": block} | tables.pop("model", {}),
            "train": {"sequence_length": 64},
        } | tables
        name = str(dtype).removeprefix("torch.")
        model, _ = build_model(check_table(table, registry).recipe, registry, vocabulary_size=V, dtype=name)
        return model.to(dtype).eval()

    return make


def random_tokens(seed: int) -> tuple[Tensor, Tokens]:
    """Ids with documents that start at random places, also at both sides of the period edges."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (B, N), generator=generator)
    resets = torch.rand(B, N, generator=generator) < 0.08
    resets[0, 8], resets[1, 7], resets[2, 24] = True, True, True
    positions = torch.zeros(B, N, dtype=torch.long)
    for t in range(1, N):
        positions[:, t] = torch.where(resets[:, t], 0, positions[:, t - 1] + 1)
    return ids, Tokens(positions, 0, resets)


def piece(tokens: Tokens, start: int, stop: int, period: int) -> Tokens:
    return Tokens(tokens.positions[:, start:stop], start % period, tokens.resets[:, start:stop])


@pytest.mark.parametrize("cuts", [[20], [7, 8, 9, 24], list(range(1, N))], ids=["halves", "edges", "single tokens"])
def test_whole_chunked_and_stepwise_agree_exactly(build: Callable[..., Any], cuts: list[int]) -> None:
    model = build(EVERYTHING)
    ids, tokens = random_tokens(1)
    with torch.no_grad():
        whole = model.logits(model(ids, None, tokens).hidden)
        pieces, state = [], None
        for start, stop in zip([0, *cuts], [*cuts, N]):
            output = model(ids[:, start:stop], state, piece(tokens, start, stop, 24))
            state = output.state
            pieces.append(model.logits(output.hidden))
    assert whole.std() > 1e-3, "the comparison would be empty"
    assert (torch.cat(pieces, 1) - whole).abs().max() <= 1e-10


def test_a_document_does_not_see_the_one_before(build: Callable[..., Any]) -> None:
    model = build([layer for layer in EVERYTHING if "period" not in layer] + [{"use": "fast-weights", "heads": 2}])
    ids, tokens = random_tokens(2)
    start = 17
    tokens.resets[:, start:] = False
    tokens.resets[:, start] = True
    tokens.positions[:, start:] = torch.arange(N - start)
    with torch.no_grad():
        together = model(ids, None, tokens).hidden[:, start:]
        alone = model(ids[:, start:], None, None).hidden
    assert (together - alone).abs().max() <= 1e-10


def test_a_piece_of_no_tokens_changes_nothing(build: Callable[..., Any]) -> None:
    model = build(EVERYTHING)
    ids, tokens = random_tokens(5)
    with torch.no_grad():
        first = model(ids[:, :24], None, piece(tokens, 0, 24, 24))
        nothing = model(ids[:, 24:24], first.state, piece(tokens, 24, 24, 24))
        assert nothing.state is first.state and model.logits(nothing.hidden).shape == (B, 0, V)
        rest = model(ids[:, 24:], nothing.state, piece(tokens, 24, N, 24)).hidden
        assert model(ids[:, :0]).state is None, "the start stays the start"
        whole = model(ids, None, tokens).hidden
    assert (torch.cat([first.hidden, nothing.hidden, rest], 1) - whole).abs().max() <= 1e-10


def test_a_document_starts_at_valid_tokens_alone() -> None:
    place = torch.arange(4)[None]
    resets, valid = torch.tensor([[True, False, True, True]]), torch.tensor([[True, True, True, False]])
    assert Tokens(place, 0, resets, valid).starts().tolist() == [[True, False, True, False]]
    assert Tokens(place, 0, resets).starts() is resets and Tokens(place, 0, None, valid).starts() is None


def test_rows_do_not_depend_on_their_order(build: Callable[..., Any]) -> None:
    model = build(EVERYTHING)
    ids, tokens = random_tokens(3)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        straight = model(ids, None, tokens).hidden[order]
        permuted = model(ids[order], None, Tokens(tokens.positions[order], 0, tokens.resets[order])).hidden
    assert (straight - permuted).abs().max() <= 1e-10


def test_every_parameter_receives_gradient_at_the_start(build: Callable[..., Any]) -> None:
    model = build(EVERYTHING).train()
    ids, tokens = random_tokens(4)
    output = model(ids, None, tokens)
    scores = model.logits(output.hidden)[:, :-1]
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not dead


def test_in_training_a_share_of_an_update_is_dropped_and_the_rest_makes_up_for_it(build: Callable[..., Any]) -> None:
    model = build([{"use": "feed-forward"}], model={"dropout": 0.25})
    updates: list[Tensor] = []
    model.blocks[0].get_submodule("feed-forward").register_forward_hook(lambda *call: updates.append(call[2].update))
    x = torch.zeros(4, 50, 12, dtype=torch.float64)
    x += torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = Tokens(torch.arange(50).expand(4, -1))
    for training in (False, True):
        added = model.blocks[0].train(training)(x, None, {}, tokens).x - x
        kept = added != 0
        assert (0.7 < kept.double().mean() < 0.8) if training else kept.all()
        scale = 1 / 0.75 if training else 1.0
        torch.testing.assert_close(added, torch.where(kept, scale * updates[-1], 0.0))


def test_signals_flow_into_the_potential(build: Callable[..., Any]) -> None:
    """memory-feedback reads what the memory of the block before answered; without one before, it contributes zero."""
    block = [EVERYTHING[1], {"use": "resolvent", "heads": 3, "potential": ["non-hermitian", "memory-feedback"]}]
    model = build(block)
    ids, tokens = random_tokens(5)
    with torch.no_grad():
        before = model(ids, None, tokens).hidden
        for name, parameter in model.named_parameters():
            if "memory-feedback" in name:
                parameter.mul_(3.0)
        assert (model(ids, None, tokens).hidden - before).abs().max() > 1e-6


def test_removing_a_layer_leaves_all_other_initial_values_alone(build: Callable[..., Any]) -> None:
    full, less = build(EVERYTHING), build(EVERYTHING[1:])
    values = dict(full.named_parameters())
    for name, parameter in less.named_parameters():
        assert torch.equal(parameter, values[name]), name
    other = dict(build(EVERYTHING, seed=1).named_parameters())
    assert not torch.equal(other["blocks.0.fast-weights.query.weight"], values["blocks.0.fast-weights.query.weight"])


def test_at_places_layers_and_names_are_those_of_parameters(build: Callable[..., Any]) -> None:
    model = build(EVERYTHING)
    names = {name for name, _ in model.named_parameters()}
    assert any(name.startswith("blocks.0.attention.") for name in names)
    assert not any(name.startswith("blocks.1.attention.") for name in names)
    assert {name for name in names if name.startswith("blocks.1.slow.")}


def test_roles_cover_every_parameter(build: Callable[..., Any]) -> None:
    model = build(EVERYTHING, model={"tie_embeddings": False})
    roles = parameter_roles(model)
    assert set(roles) == {name for name, _ in model.named_parameters()} and set(roles.values()) == set(ROLES)
    assert roles["embedding.weight"] == roles["head.weight"] == "embedding"
    assert roles["blocks.0.fast-weights.query.weight"] == "matrix"
    assert all(role == "dynamics" for name, role in roles.items() if ".dynamics." in name)


def test_initializers_act_where_they_match_and_say_where_they_do_not(build: Callable[..., Any]) -> None:
    plain = dict(build([{"use": "feed-forward"}]).named_parameters())
    entry = {"use": "orthogonal", "match": "blocks.1.feed-forward.*"}
    changed = dict(build([{"use": "feed-forward"}], initializers=[entry]).named_parameters())
    differs = {name for name in plain if not torch.equal(plain[name], changed[name])}
    assert differs == {name for name in plain if name.startswith("blocks.1.feed-forward.")}
    with pytest.raises(RecipeError, match="matches no parameter"):
        build([{"use": "feed-forward"}], initializers=[{"use": "orthogonal", "match": "nowhere.*"}])


@pytest.mark.parametrize(
    "returned, words",
    [
        (None, "returned None where a new tensor is due for "),
        (torch.ones(3, 3), "returned shape (3, 3) where (5, 4) is due for "),
        (torch.full((5, 4), math.nan), "returned NaN or infinity for "),
        (torch.ones(5, 4, dtype=torch.complex64), "returned torch.complex64 where real numbers are due for "),
    ],
)
def test_what_an_initializer_returns_is_held_to_its_contract(returned: Any, words: str) -> None:
    use = Use(kind="initializer", name="odd", distribution="d", version="1", implementation="", options=None)
    matched = [Matched(initializer=use, match="*.weight")]
    model = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(PluginError) as caught:
        initialize(model, matched, seed=0, make=lambda use, context: lambda tensor, **told: returned)
    assert str(caught.value) == f"initializers[0]: initializer 'odd' of d 1 {words}0.weight"


def test_periods_count_only_where_something_acts(registry: Any) -> None:
    def of(block: list[Any]) -> tuple[int, ...]:
        table = {"name": "t", "model": {"width": 12, "depth": 1, "block": block}, "train": {"sequence_length": 64}}
        return periods(check_table(table, registry).recipe.model.options)

    assert of(EVERYTHING) == (8, 12)
    assert of([{"use": "fast-weights", "heads": 2}]) == ()


def test_failure_of_a_layer_names_it_with_its_distribution(build: Callable[..., Any]) -> None:
    with pytest.raises((PluginError, RecipeError), match="heads"):
        build([{"use": "attention", "heads": 5}])


def test_blocks_that_are_compiled_one_by_one_share_what_is_compiled(build: Callable[..., Any]) -> None:
    """torch compiles a function eight times and then no more: with a name in each block deeper ones ran uncompiled."""
    model = build([{"use": "resolvent", "heads": 3, "potential": ["non-hermitian"]}], model={"depth": 3})
    graphs = []

    def compiler(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    for block in model.blocks:
        block.compile(backend=compiler)
    output = model(torch.arange(16).expand(2, 16))
    torch.compiler.reset()
    assert len(graphs) == 1 and {f"blocks.{index}.resolvent/" for index in range(3)} == {
        name[: name.index("/") + 1] for name in output.metrics
    }
