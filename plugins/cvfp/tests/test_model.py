"""The recurrence, its parallel iteration, and what must not reach what."""

from __future__ import annotations

import pytest
import torch
from muse_cvfp.fixed_point import Slices
from muse_cvfp.stream import Stream, before, sequential, settle, sweep

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.testing import InitializerSuite, ModelSuite
from muse_core.testing.building import build_component


class TestCvfp(ModelSuite):
    """Small: of 100,000 rectifiers at the default width some lie within a difference quotient of their kink."""

    name = "cvfp"
    options = {"width": 8, "depth": 2}


class TestMixedCvfp(TestCvfp):
    options = {"width": 8, "depth": 2, "layernorm_mix": 0.5}


class TestGru(ModelSuite):
    name = "gru"


class TestSafetensors(InitializerSuite):
    name = "safetensors"


def make(width: int = 16, depth: int = 3, **options):
    return build_component("model", "cvfp", {"width": width, "depth": depth, **options}).eval()


def stream(count: int = 120, starts: tuple[int, ...] = (0, 31, 32, 90)) -> Stream:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(200, (count + 1,), generator=generator)
    resets = torch.zeros(count, dtype=torch.bool)
    resets[list(starts)] = True
    return Stream(ids[:-1], ids[1:], resets)


def test_a_block_is_its_formula_written_out() -> None:
    model = make(width=3, depth=1).double()
    c, x = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    block = model.context_blocks[0]
    z = torch.relu(torch.cat((c, x), 1) @ block.mixing.weight.T + block.mixing.bias)

    def norm(v):
        return (v - v.mean(1, keepdim=True)) / (v.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    got = block(c, x)
    assert (got[0] - norm(c + z[:, :3])).abs().max() < 1e-12
    assert (got[1] - norm(x + z[:, 3:])).abs().max() < 1e-12
    assert block.mixing.weight.shape == (6, 6)


def test_hidden_is_context_and_embedding() -> None:
    with pytest.raises(RecipeError, match=r"hidden 30 must be context \+ embedding = 16 \+ 16 = 32"):
        make(hidden=30)
    assert make(hidden=32).context_blocks[0].mixing.in_features == 32


def test_the_mix_goes_from_nothing_to_the_norm() -> None:
    v = torch.randn(4, 16)
    norms = [make(layernorm_mix=mix).context_blocks[0].norm(v) for mix in (0.0, 0.25, 1.0)]
    assert torch.equal(norms[0], v)
    assert torch.allclose(norms[1], 0.75 * norms[0] + 0.25 * norms[2])


def test_parallel_sweeps_become_the_recurrence() -> None:
    """After k sweeps the first k tokens of every document are exact, so that N are enough for all. In float64: what
    rounding does to a recurrence that hardly contracts is no matter of the sweeps."""
    model, text = make().double(), stream()
    exact = sequential(model, text)
    contexts = torch.randn(exact.shape, dtype=torch.float64)
    within = torch.arange(len(text)) - torch.where(text.resets, torch.arange(len(text)), 0).cummax(0).values
    for k in range(1, 13):
        contexts = sweep(model, text, contexts)
        assert (contexts - exact)[within < k].abs().max() < 1e-6
    settled = settle(model, text, torch.randn(exact.shape, dtype=torch.float64), tolerance=1e-9)
    assert len(settled.changes) <= len(text)
    assert (settled.contexts - exact).abs().max() < 1e-6
    assert 0 < settled.contraction < 1


def test_sweeps_in_chunks_are_the_sweep() -> None:
    model, text = make(), stream()
    contexts = torch.randn(len(text), 16)
    assert torch.allclose(sweep(model, text, contexts, at_once=7), sweep(model, text, contexts), atol=1e-6)


def test_no_context_crosses_the_start_of_a_document() -> None:
    model, text = make(), stream()
    changed = Stream(text.ids.clone(), text.labels, text.resets)
    changed.ids[:31] = (changed.ids[:31] + 1) % 200
    moved = (sequential(model, changed) - sequential(model, text)).abs().amax(1)
    assert (moved[:31] > 0).all() and not moved[31:].any()
    for carry in ("learned", "wrap"):
        contexts = torch.randn(len(text), 16)
        other = contexts.clone()
        other[:31] += 1.0
        given = before(model, text, contexts, 0, len(text), carry)
        assert torch.equal(before(model, text, other, 0, len(text), carry)[31:], given[31:])


def test_wrap_starts_a_document_with_its_own_last_context() -> None:
    model, text = make(), stream()
    previous = torch.randn(len(text), 16)
    given = before(model, text, previous, 0, len(text), "wrap")
    for start, end in ((0, 30), (31, 31), (32, 89), (90, 119)):
        assert torch.equal(given[start], previous[end])
    assert torch.equal(given[1:31], previous[:30])
    learned = before(model, text, previous, 0, len(text), "learned")
    assert torch.equal(learned[32], model.start)


def test_a_slice_continues_from_the_token_before_it() -> None:
    model, text = make(), stream()
    previous = torch.randn(len(text), 16)
    whole = before(model, text, previous, 0, len(text), "learned")
    parts = [before(model, text, previous, start, min(start + 50, 120), "learned") for start in (0, 50, 100)]
    assert torch.equal(torch.cat(parts), whole)


def test_contexts_are_detached_between_tokens() -> None:
    model, text = make(), stream()
    previous = torch.randn(len(text), 16, requires_grad=True)
    given = before(model, text, previous, 0, len(text), "learned")
    (of_start,) = torch.autograd.grad(given.sum(), [model.start], retain_graph=True)
    assert (of_start == 4).all(), "c0 stands before four documents"
    assert torch.autograd.grad(given.sum(), [previous], allow_unused=True) == (None,)


def test_slices_cover_the_stream_in_order() -> None:
    text = stream()
    data = Slices(text, 50)
    for step in (0, 3):
        batches = [data.batch(step + index) for index in range(3)]
        assert torch.equal(torch.cat([batch.inputs[0] for batch in batches]), text.ids)
        assert torch.equal(torch.cat([batch.labels[0] for batch in batches]), text.labels)
        assert [batch.tokens.offset for batch in batches] == [0, 50, 100]
    assert data.batch(0, [(0, 1)]).tokens.offset == 50


def test_streaming_is_the_whole() -> None:
    model = make().double()
    ids = stream().ids[None]
    whole = model(ids)
    state, scores = None, []
    for token in range(ids.shape[1]):
        output = model(ids[:, token : token + 1], state, Tokens(torch.tensor([[token]])))
        state = output.state
        scores.append(model.logits(output.hidden))
    assert (torch.cat(scores, 1) - model.logits(whole.hidden)).abs().max() < 1e-10
