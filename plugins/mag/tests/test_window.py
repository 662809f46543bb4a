"""Windows of attention with persistent tokens against a dense sum, and their state."""

import pytest
import torch

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.model import attention
from muse_core.testing import build_component
from muse_core.testing.sequences import leaves, make_tokens

WIDTH = 16
VARIANTS = {
    "defaults": {},
    "grouped": {"heads": 4, "key_value_heads": 2, "window": 5},
    "of one token": {"window": 1},
    "without persistent tokens": {"window": 5, "persistent": 0},
    "unrotated": {"window": 5, "rotary": False},
    "not normalised": {"window": 7, "query_key_norm": False, "persistent": 2},
}


def build(**options):
    return build_component("layer", "sliding-window", options, width=WIDTH, dtype="float64").double()


def dense(layer, x, tokens):
    """The definition, one query at a time."""
    inner = layer.attention
    heads, groups, size, options = inner.heads, inner.groups, inner.size, inner.options

    def normalised(norm, vector):
        return vector if norm is None else vector / (vector.square().mean() + 1e-6).sqrt() * norm.weight

    def rotated(vector, position):
        if not options.rotary:
            return vector
        return attention.rotate(vector[None, None, None], torch.tensor([[position]]), options.rotary_base)[0, 0, 0]

    update = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            position = int(tokens.positions[row, t])
            mixed = []
            for head in range(heads):
                group = head * groups // heads
                query = normalised(inner.query_norm, inner.query(x[row, t]).view(heads, size)[head])
                scores, values = [], []
                for p in range(options.persistent):
                    key = normalised(inner.key_norm, inner.persistent.key.weight[p].view(groups, size)[group])
                    scores.append(query @ key)
                    values.append(inner.persistent.value.weight[p].view(groups, size)[group])
                for j in range(max(t - position, t - options.window + 1), t + 1):
                    key = normalised(inner.key_norm, inner.key(x[row, j]).view(groups, size)[group])
                    scores.append(rotated(query, position) @ rotated(key, int(tokens.positions[row, j])))
                    values.append(inner.value(x[row, j]).view(groups, size)[group])
                mixed.append((torch.stack(scores) / size**0.5).softmax(0) @ torch.stack(values))
            update[row, t] = layer.output(torch.cat(mixed))
    return update


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("documents", [False, True])
@torch.no_grad()
def test_it_is_the_dense_sum(options, documents):
    torch.manual_seed(0)
    layer, x, tokens = build(**options), torch.randn(3, 14, WIDTH).double(), make_tokens(3, 14, documents=documents)
    assert torch.allclose(layer(x, None, {}, tokens).update, dense(layer, x, tokens), rtol=0, atol=1e-12)


@torch.no_grad()
def test_every_position_sees_the_persistent_tokens_and_alike():
    """Also far behind the window, with a share that does not depend on the position."""
    torch.manual_seed(0)
    layer = build(heads=2, window=4, persistent=3)
    x = torch.randn(1, 1, WIDTH).double().expand(1, 40, -1)
    before = layer(x, None, {}, make_tokens(1, 40)).update
    layer.attention.persistent.value.weight.add_(1.0)
    moved = (layer(x, None, {}, make_tokens(1, 40)).update - before)[0]
    assert moved.abs().amin() > 1e-3
    assert torch.allclose(moved[4:], moved[4].expand(36, -1), rtol=0, atol=1e-12)


@torch.no_grad()
def test_its_state_does_not_grow():
    layer = build(window=5)
    sizes, state = set(), None
    for start in range(0, 40, 4):
        x = torch.randn(2, 4, WIDTH).double()
        state = layer(x, state, {}, Tokens(torch.arange(start, start + 4).expand(2, -1))).state
        sizes.add(tuple(leaf.shape for leaf in leaves(state).values()))
    assert len(sizes) == 1


@torch.no_grad()
def test_no_mask_grows_with_the_square_of_the_text(monkeypatch):
    seen = []
    original = attention.attend

    def watched(query, key, value, mask=None, scale=None):
        seen.append(mask.numel())
        return original(query, key, value, mask, scale)

    monkeypatch.setattr(attention, "attend", watched)
    layer, length = build(heads=2, window=8, persistent=4).float(), 5000
    layer(torch.randn(1, length, WIDTH), None, {}, make_tokens(1, length))
    assert sum(seen) <= (length + 8) * (2 * 8 + 4)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(RecipeError, match="heads = 3 does not divide the width 16"):
        build(heads=3)
    with pytest.raises(RecipeError, match="is the odd 1"):
        build(heads=16)
