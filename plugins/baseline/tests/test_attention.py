"""Attention against a dense sum over each document, and its state."""

import pytest
import torch
from muse_baseline.options import AttentionOptions

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.model.attention import rotate
from muse_core.testing import build_component

WIDTH = 16
VARIANTS = {
    "plain": {},
    "grouped": {"heads": 4, "key_value_heads": 2},
    "window": {"heads": 2, "window": 5},
    "window of one": {"heads": 2, "window": 1},
    "window beyond the text": {"heads": 2, "window": 64},
    "unrotated": {"rotary": False},
    "convolved": {"heads": 4, "key_value_heads": 2, "convolution": 3},
    "normalised": {"query_key_norm": True, "convolution": 4},
}


def build(**options):
    return build_component("layer", "attention", options, width=WIDTH, dtype="float64").double()


def documents(starts, length):
    """Tokens of rows whose documents start at the given indices."""
    resets = torch.zeros(len(starts), length, dtype=torch.bool)
    positions = torch.zeros(len(starts), length, dtype=torch.int64)
    for row, indices in enumerate(starts):
        resets[row, indices] = True
        for token in range(length):
            positions[row, token] = 0 if resets[row, token] else (positions[row, token - 1] + 1 if token else 0)
    return Tokens(positions, resets=resets)


def part(tokens, start, stop):
    return Tokens(
        tokens.positions[:, start:stop],
        resets=None if tokens.resets is None else tokens.resets[:, start:stop],
        valid=None if tokens.valid is None else tokens.valid[:, start:stop],
    )


def convolved(x, taps, positions):
    """Sums over earlier tokens of the same document, written out."""
    result = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            for lag in range(min(len(taps) - 1, int(positions[row, t])) + 1):
                result[row, t] += taps[lag] * x[row, t - lag]
    return result


def dense(layer, x, tokens):
    """The definition, one query at a time."""
    heads, groups, window = layer.heads, layer.groups, layer.options.window or x.shape[1]
    query, key, value = layer.query(x), layer.key(x), layer.value(x)
    if layer.convolution is not None:
        whole = convolved(torch.cat((query, key, value), dim=-1), layer.convolution.taps, tokens.positions)
        query, key, value = whole.split((query.shape[-1], key.shape[-1], value.shape[-1]), dim=-1)
    query, key, value = (side.unflatten(-1, (-1, layer.size)) for side in (query, key, value))
    if layer.query_norm is not None:
        query = query / (query.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.query_norm.weight
        key = key / (key.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.key_norm.weight
    if layer.options.rotary:
        query, key = (rotate(side, tokens.positions, layer.options.rotary_base) for side in (query, key))
    mixed = torch.zeros_like(query)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            first = max(t - int(tokens.positions[row, t]), t - window + 1)
            for head in range(heads):
                group = head * groups // heads
                scores = key[row, first : t + 1, group] @ query[row, t, head] / layer.size**0.5
                mixed[row, t, head] = scores.softmax(0) @ value[row, first : t + 1, group]
    return layer.output(mixed.flatten(-2))


@pytest.fixture(params=list(VARIANTS))
def layer(request):
    return build(**VARIANTS[request.param])


@pytest.fixture
def tokens():
    return documents([[0, 7, 8], [13], []], 19)


@pytest.fixture
def x():
    return torch.randn(3, 19, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_equals_the_definition(layer, x, tokens):
    torch.testing.assert_close(layer(x, None, {}, tokens).update, dense(layer, x, tokens), rtol=0, atol=1e-12)


@torch.no_grad()
def test_equals_the_definition_without_document_starts(layer, x):
    tokens = Tokens(torch.arange(19).expand(3, -1))
    torch.testing.assert_close(layer(x, None, {}, tokens).update, dense(layer, x, tokens), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(0, 6, 19), (0, 1, 8, 9, 17, 19), tuple(range(20))])
def test_pieces_with_carried_state_equal_the_whole(layer, x, tokens, cuts):
    state, updates = None, []
    for start, stop in zip(cuts, cuts[1:]):
        step = layer(x[:, start:stop], state, {}, part(tokens, start, stop))
        state = step.state
        updates.append(step.update)
    torch.testing.assert_close(torch.cat(updates, 1), layer(x, None, {}, tokens).update, rtol=0, atol=1e-12)


@torch.no_grad()
def test_padding_leaves_the_state_alone(layer, x, tokens):
    """Rows end at 4, 15 and 11; what follows equals what follows the unpadded row."""
    lengths = (4, 15, 11)
    valid = torch.arange(19) < torch.tensor(lengths)[:, None]
    state = layer(x, None, {}, tokens._replace(valid=valid)).state
    positions = tokens.positions[torch.arange(3), torch.tensor(lengths) - 1]
    following = torch.randn(3, 3, WIDTH, dtype=torch.float64)
    after = Tokens(positions[:, None] + 1 + torch.arange(3))
    together = layer(following, state, {}, after).update
    for row, length in enumerate(lengths):
        alone = slice(row, row + 1)
        state = layer(x[alone, :length], None, {}, part(documents_of(tokens, row), 0, length)).state
        update = layer(following[alone], state, {}, Tokens(after.positions[alone])).update
        torch.testing.assert_close(together[alone], update, rtol=0, atol=1e-12)


def documents_of(tokens, row):
    return Tokens(tokens.positions[row : row + 1], resets=tokens.resets[row : row + 1])


def test_no_gradient_from_later_tokens_or_other_documents(layer, x, tokens):
    x = x.requires_grad_()
    layer(x, None, {}, tokens).update[:, 10].square().sum().backward()
    start = [8, 0, 0]
    for row in range(3):
        assert x.grad[row, 11:].count_nonzero() == 0
        assert x.grad[row, : start[row]].count_nonzero() == 0
        assert x.grad[row, 10].count_nonzero() > 0


@torch.no_grad()
def test_a_window_bounds_reach_and_state(x):
    layer = build(**VARIANTS["window"])
    tokens = Tokens(torch.arange(19).expand(3, -1))
    moved = x.clone()
    moved[:, 3] += 1e6
    difference = (layer(moved, None, {}, tokens).update - layer(x, None, {}, tokens).update).abs().amax((0, 2))
    assert difference[3:8].min() > 1e-3
    assert difference[8:].max() == 0
    state = layer(x, None, {}, tokens).state
    assert {name: tensor.shape[1] for name, tensor in state.items()} == {"key": 5, "value": 5, "visible": 5}
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())


@torch.no_grad()
def test_rotated_products_depend_on_distance():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    near, far = (
        (rotate(q, torch.tensor([[i]]), 1e4) * rotate(k, torch.tensor([[i - 3]]), 1e4)).sum() for i in (3, 50_000)
    )
    torch.testing.assert_close(near, far, rtol=0, atol=1e-9)
    assert abs(near - (q * k).sum()) > 1e-3


@pytest.mark.parametrize("options, sentence", [({"heads": 3}, "does not divide"), ({"heads": 16}, "the odd 1")])
def test_impossible_sizes_are_named(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        build(**options)


def test_key_value_heads_must_divide():
    with pytest.raises(ValueError, match="not a multiple"):
        AttentionOptions(heads=4, key_value_heads=3)


def test_a_compiler_finds_the_angles_of_positions_as_one_operator():
    """It would compute sines and cosines once more for every head; what comes out is the same."""
    found = []

    def backend(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    x, positions = torch.randn(2, 8, 3, 16, requires_grad=True), torch.arange(8).expand(2, 8)
    compiled = torch.compile(lambda x: rotate(x, positions, 1e4), backend=backend, fullgraph=True)(x)
    torch.compiler.reset()
    plain = rotate(x, positions, 1e4)
    assert torch.equal(compiled, plain)
    (gradient,), (wanted,) = (torch.autograd.grad(y.square()[..., :3].sum(), x) for y in (compiled, plain))
    assert torch.equal(gradient, wanted)
    assert "muse_core.turns.default" in found and not any("cos" in name for name in found)
