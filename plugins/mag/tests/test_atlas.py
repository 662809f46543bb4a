"""The deep memory keeps the contract of memory layers in its variants; tests/ does the same for its defaults."""


from types import SimpleNamespace

import pytest
import torch
from muse_mag.atlas import Monomials
from muse_mag.atlas_options import AtlasOptions

from muse_core.contracts import Tokens
from muse_core.testing.building import build_component
from muse_core.testing.layers import MemoryLayerSuite


class TestAtlasInSmallChunks(MemoryLayerSuite):
    name = "atlas"
    options = {"heads": 2, "chunk": 4, "window": 3, "key_size": 5, "hidden_size": 6, "orthogonalise": True}
    test_compiles = None  # the defaults compile; a variant costs seconds more


class TestAtlasByTheRuleOfTitans(MemoryLayerSuite):
    name = "atlas"
    options = {"heads": 2, "chunk": 2, "convolution": 0, "gate": False, "recompute": 2}
    test_compiles = None


class TestAtlasOfTwoLevels(MemoryLayerSuite):
    name = "atlas"
    options = {"heads": 2, "chunk": 2, "levels": 2, "global_chunk": 8, "shard": 6, "key_size": 3, "degree": 2,
               "orthogonalise": True}
    test_compiles = None


class TestLinearAtlas(MemoryLayerSuite):
    name = "atlas"
    options = {"heads": 2, "chunk": 4, "memory": "linear", "momentum": False}
    test_compiles = None


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_features_multiply_as_polynomials(degree: int):
    features = Monomials(4, degree)
    query, key = torch.randn(2, 1, 1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = (query * key).sum()
    expected = sum(product**d for d in range(1, degree + 1)) / degree
    assert abs((features(query) * features(key)).sum() - expected) <= 1e-12
    assert features(query).shape[-1] == AtlasOptions(key_size=4, degree=degree).key_width(16)


OPTIONS = {"heads": 2, "chunk": 4, "levels": 2, "global_chunk": 8, "shard": 8, "convolution": 0}


def built(**changes) -> tuple[torch.nn.Module, torch.Tensor]:
    """A layer of width 16 in float64, and a sequence of 24 tokens that asks for gradients."""
    layer = build_component("memory layer", "atlas", OPTIONS | changes, dtype="float64").double()
    x = torch.randn(1, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return layer, x.requires_grad_()


def read(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x, None, {}, Tokens(torch.arange(24)[None])).update


def test_the_first_level_forgets_at_shards_and_the_second_does_not():
    """Of token 14, in the second shard and its second chunk: the first level reaches its own shard alone."""
    layer, x = built()
    whole = torch.autograd.grad(read(layer, x)[0, 14].sum(), x)[0][0]
    assert whole[:12].abs().amax(-1).min() > 0 and not whole[12:14].any() and not whole[15:].any()
    with torch.no_grad():
        layer.dynamics.rate.bias[2:] = -torch.inf  # the second level learns nothing
        layer.dynamics.rate.weight[2:] = 0
        layer.dynamics.momentum.weight[2:] = layer.dynamics.decay.weight[2:] = 0
    first = torch.autograd.grad(read(layer, x)[0, 14].sum(), x)[0][0]
    assert not first[:8].any() and first[8:12].abs().amax(-1).min() > 0


def test_what_starts_a_shard_is_learned_and_trained():
    layer, x = built()
    found = torch.autograd.grad(read(layer, x)[0, 17].sum(), layer.dynamics.weights)[0]
    assert found.abs().amax((-1, -2)).min() > 0


@pytest.mark.parametrize("alike", [False, True], ids=["unrelated", "alike"])
@pytest.mark.parametrize("options", [{}, {"momentum": False}, {"memory": "linear"}], ids=str)
def test_the_weights_and_gradients_through_them_stay_bounded(options: dict, alike: bool):
    """Over 2,048 tokens in chunks of 4, of unrelated or of slowly changing tokens; the linear memory, which has fitted
    after few chunks, shows steps that do not shrink with the loss first."""
    layer = build_component("memory layer", "atlas", {"heads": 2, "chunk": 4} | options, dtype="float64").double()
    x = torch.randn(1, 2049, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (slow(x) if alike else x).requires_grad_()
    found = layer(x, None, {}, Tokens(torch.arange(2049)[None]))
    start = layer.dynamics.weights[0]
    lengths = [w.square().sum((-1, -2, -3)).sqrt() for w in (found.state["first"]["weights"][0], start)]
    assert (lengths[0] <= 1.1 * lengths[1]).all()
    one = torch.autograd.grad(found.update[0, -1].sum(), x)[0][0].norm(dim=-1)
    assert 0 < one[:4].norm() <= one[-64:].norm() and one.max() <= 10


@pytest.mark.parametrize("options", [{}, {"momentum": False}, {"window": 16}, {"memory": "linear"}], ids=str)
@torch.no_grad()
def test_the_largest_rates_that_can_be_learned_do_not_diverge(options: dict):
    layer = build_component("memory layer", "atlas", {"heads": 4} | options, dtype="float64").double()
    layer.dynamics.rate.bias.fill_(20.0)
    state = layer(slow(torch.randn(1, 2048, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))),
                  None, {}, Tokens(torch.arange(2048)[None])).state  # fmt: skip
    assert state["first"]["weights"].norm() <= 1.5 * layer.dynamics.weights.norm()


def slow(x: torch.Tensor) -> torch.Tensor:
    """Tokens that are like the ones before them, of the same size, from unrelated ones (1, N, D)."""
    kept = 0.98 ** torch.arange(x.shape[1], dtype=x.dtype)
    return (1 - 0.98**2) ** 0.5 * torch.einsum("ts,bsd->btd", (kept[:, None] / kept).tril(), x)


def test_padded_rows_are_refused():
    layer, x = built()
    tokens = Tokens(torch.arange(24)[None], valid=torch.ones(1, 24, dtype=torch.bool))
    with pytest.raises(ValueError, match="right-padded rows"):
        layer(x, None, {}, tokens)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"levels": 2, "chunk": 48}, "chunk = 48 does not divide global_chunk = 2048"),
        ({"levels": 2, "chunk": 64, "shard": 100}, "shard = 100 is no multiple of chunk = 64"),
        ({"initial_step": 0.4}, "initial_step = 0.4 is not below 0.333"),
        ({"initial_decay": (0.1, 0.01)}, "initial_decay must be two rates"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        AtlasOptions(**options)


def test_what_a_recipe_asks_in_vain():
    recipe = SimpleNamespace(
        train=SimpleNamespace(sequence_length=64), model=SimpleNamespace(options=SimpleNamespace(width=18))
    )
    problems = [*AtlasOptions(chunk=64).problems(recipe), *AtlasOptions(levels=2, chunk=32).problems(recipe)]
    for words in ("chunk is 64 but sequences", "global_chunk is 2048 but", "shard is 2048 but", "heads is 4, which"):
        assert any(words in problem for problem in problems), words
    large = AtlasOptions(key_size=1024, hidden_size=16_384, heads=1000)
    assert any("GiB for every sequence" in problem for problem in large.problems(recipe))
