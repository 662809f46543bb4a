"""Persistent memory and projected queries against dense references, and where shards begin."""

import pytest
import torch
from muse_mag.options import QueryProjectionOptions
from muse_mag.persistent import PersistentMemory
from muse_mag.projection import QueryProjection
from muse_mag.shards import by_shard, pieces

from muse_core.contracts import Tokens
from muse_core.testing import build_component
from muse_core.testing.sequences import make_tokens
from muse_kernels import fast_weights, unit_length

HEADS, SIZE, WIDTH = 2, 8, 16


def draw(length, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random():
        return torch.randn(batch, length, HEADS, SIZE, generator=generator, dtype=torch.float64)

    return random(), unit_length(random())


def persistent(count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return PersistentMemory(count, HEADS, SIZE, SIZE, generator).double()


def dense(query, key, memory, tokens, shard, norm_persistent):
    """Sums written out."""
    out = torch.zeros_like(query)
    for row in range(query.shape[0]):
        for head in range(query.shape[2]):
            for t in range(query.shape[1]):
                place = tokens.offset + t
                first = max(t - int(tokens.positions[row, t]), t - place % shard, 0)
                keys = [key[row, i, head] for i in range(first, t + 1)]
                norm = sum(k @ k for k in keys)
                if memory is not None:
                    learned = memory.key.weight.view(-1, HEADS, SIZE)[:, head]
                    keys += list(learned)
                    norm = norm + (learned.square().sum() if norm_persistent else 0.0)
                out[row, t, head] = sum(k * (k @ query[row, t, head]) for k in keys) / norm
    return out


@pytest.mark.parametrize("norm_persistent", [True, False])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("learned", [True, False])
@torch.no_grad()
def test_queries_are_projected_on_the_keys_seen(norm_persistent, documents, learned):
    query, key = draw(17)
    memory = persistent() if learned else None
    tokens = make_tokens(2, 17, documents=documents)
    layer = QueryProjection(fast_weights, norm_persistent)
    found, _ = layer(query, key, None if memory is None else memory.moments(), None, tokens)
    expected = dense(query, key, memory, tokens, 17, norm_persistent)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_for_orthonormal_keys_it_is_the_ridge_projector():
    """n q' = Kᵀ(KKᵀ + εI)⁻¹K q as ε → 0 where the keys are orthonormal, and in their span for any keys."""
    query, _ = draw(5, batch=1)
    basis = torch.linalg.qr(torch.randn(HEADS, SIZE, SIZE, dtype=torch.float64)).Q[..., :5]  # (H, K, 5)
    key = basis.permute(2, 0, 1)[None]
    found, state = QueryProjection(fast_weights, True)(query, key, None, None, make_tokens(1, 5))
    rows = key[0, :, 0]
    ridge = rows.T @ torch.linalg.solve(rows @ rows.T + 1e-12 * torch.eye(5).double(), rows)
    assert torch.allclose(found[0, -1, 0] * state["norm"][0, 0], ridge @ query[0, -1, 0], rtol=0, atol=1e-9)

    _, key = draw(5, batch=1, seed=3)
    found, _ = QueryProjection(fast_weights, True)(query, key, None, None, make_tokens(1, 5))
    rows = key[0, :, 0]
    ridge = rows.T @ torch.linalg.solve(rows @ rows.T + 1e-13 * torch.eye(5).double(), rows)
    assert torch.allclose(ridge @ found[0, -1, 0], found[0, -1, 0], rtol=0, atol=1e-9)


@torch.no_grad()
def test_sums_over_many_documents_stay_exact():
    """In fp32 n of the last document of a long text is the number of its tokens, not a difference of large numbers."""
    key = unit_length(torch.randn(1, 3000, HEADS, SIZE))
    resets = (torch.arange(3000) % 7 == 0)[None]
    tokens = Tokens(torch.arange(3000)[None] % 7, resets=resets)
    _, state = QueryProjection(fast_weights, True)(key, key, None, None, tokens)
    assert torch.allclose(state["norm"], torch.full((1, HEADS), float(2999 % 7 + 1)), rtol=1e-6)


def build(**options):
    options = {"heads": HEADS, "shard": 6, "persistent": 3} | options
    return build_component("memory layer", "qk-projection", options, width=WIDTH, dtype="float64").double()


@torch.no_grad()
def recurrence(layer, x, tokens, shard):
    """The layer one token at a time, from its own queries, keys and values: (B, N, H, M) before the norm."""
    def projected(part, state, tokens):
        return layer.projected(part, {}, tokens)[0], {}

    (query, key, value), _ = by_shard(projected, x, None, tokens, shard)
    log_decay, rate = layer.dynamics(x)
    memory = layer.persistent
    aligned = dense(query, key, memory, tokens, shard, layer.projection.norm_persistent)
    share = layer.dynamics.share.sigmoid()
    read = torch.zeros_like(value)
    for row in range(x.shape[0]):
        for head in range(HEADS):
            learned = [side[:, head] for side in memory.tokens()]
            start = learned[0].T @ learned[1]
            weights = start
            for t in range(x.shape[1]):
                if tokens.positions[row, t] == 0 or (tokens.offset + t) % shard == 0:
                    weights = start
                k, v, b = key[row, t, head], value[row, t, head], rate[row, t, head]
                weights = start + log_decay[row, t, head].exp() * (weights - start - b * k[:, None] * (
                    k @ (weights - start)
                )) + b * k[:, None] * (v - start.T @ k)
                s = share[head]
                read[row, t, head] = weights.T @ ((1 - s) * query[row, t, head] + s * SIZE * aligned[row, t, head])
    return read


@pytest.mark.parametrize("documents", [False, True])
def test_the_memory_is_the_delta_rule_from_the_persistent_one(documents):
    torch.manual_seed(0)
    layer, x = build(), torch.randn(2, 17, WIDTH).double()
    with torch.no_grad():
        layer.dynamics.share.copy_(torch.randn(HEADS))
    tokens = make_tokens(2, 17, documents=documents)._replace(offset=2)
    read = layer.norm(recurrence(layer, x, tokens, 6))
    expected = layer.output(read.flatten(2))
    assert torch.allclose(layer(x, None, {}, tokens).update, expected, rtol=0, atol=1e-11)


def test_no_gradient_crosses_a_shard_and_one_reaches_the_persistent_memory():
    torch.manual_seed(0)
    layer = build()
    x = torch.randn(1, 18, WIDTH).double().requires_grad_()
    update = layer(x, None, {}, make_tokens(1, 18)).update
    for start in (6, 12):
        of_x, *of_memory = torch.autograd.grad(
            update[:, start : start + 6].square().sum(), [x, *layer.shard_start()], retain_graph=True
        )
        assert not of_x[:, :start].any() and of_x[:, start : start + 6].any()
        assert all(one.any() for one in of_memory) and len(of_memory) == 2


@pytest.mark.parametrize("length, crosses", [(6, False), (12, False), (4, True), (7, True)])
def test_no_gradient_crosses_a_shard_from_a_carried_state(length, crosses):
    torch.manual_seed(0)
    layer = build()
    x = torch.randn(1, 16, WIDTH).double().requires_grad_()
    state = layer(x[:, :length], None, {}, make_tokens(1, length)).state
    rest = Tokens(torch.arange(length, 16)[None], offset=length % 6)
    carried = layer(x[:, length:], state, {}, rest).update[:, : -length % 6 or None]
    (gradient,) = torch.autograd.grad(carried.square().sum(), x)
    assert gradient[:, :length].any() == crosses and gradient[:, length:].any()


@pytest.mark.parametrize("offset, length, expected", [
    (0, 12, [(0, 12, 2)]), (0, 5, [(0, 5, 0)]), (4, 1, [(0, 1, 0)]), (4, 9, [(0, 2, 0), (2, 8, 1), (8, 9, 0)]),
    (5, 1, [(0, 1, 0)]), (0, 1, [(0, 1, 0)]), (2, 4, [(0, 4, 0)]),
])  # fmt: skip
def test_a_call_is_cut_where_shards_begin(offset, length, expected):
    assert list(pieces(offset, length, 6)) == expected


def test_ragged_rows_are_refused():
    tokens = make_tokens(1, 4)._replace(valid=torch.tensor([[True, True, False, False]]))
    with pytest.raises(ValueError, match="pass rows of equal length or a memory without shards"):
        build()(torch.randn(1, 4, WIDTH).double(), None, {}, tokens)


def test_moments_are_computed_anew_with_their_gradient():
    memory = persistent()
    first = memory.moments()
    assert first.norm[0].item() == pytest.approx(torch.trace(first.keys[0]).item(), rel=1e-12)
    with torch.no_grad():
        memory.key.weight.mul_(2)
    second = memory.moments()
    assert torch.allclose(second.keys, 4 * first.keys) and torch.allclose(second.norm, 4 * first.norm)
    (gradient,) = torch.autograd.grad(second.keys.sum() / second.norm.sum(), memory.key.weight)
    assert gradient.any()


def test_its_horizon_is_a_shard_or_its_slowest_head():
    assert QueryProjectionOptions(shard=512).horizon() == 512
    assert QueryProjectionOptions(shard=4096, initial_decay=(0.001, 0.1)).horizon() == pytest.approx(1000)


@torch.no_grad()
def test_persistent_attention_is_the_dense_sum():
    torch.manual_seed(0)
    layer = build_component("layer", "persistent-memory", {"heads": HEADS, "persistent": 3}, width=WIDTH).double()
    x = torch.randn(2, 5, WIDTH).double()
    query, (key, value) = layer.query(x).view(2, 5, HEADS, SIZE), layer.memory.tokens()
    weight = (torch.einsum("bnhk,phk->bnhp", query, key) / SIZE**0.5).softmax(-1)
    expected = layer.output(torch.einsum("bnhp,phm->bnhm", weight, value).flatten(2))
    assert torch.allclose(layer(x, None, {}, make_tokens(2, 5)).update, expected, rtol=0, atol=1e-12)
