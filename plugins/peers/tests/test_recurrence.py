"""The recurrence with a decay per channel: its definition token by token, documents, padding and carried state."""

import pytest
import torch
from muse_peers.recurrence import Writing, recurrence

from muse_core.contracts import Tokens

BATCH, HEADS, KEY, VALUE = 2, 3, 4, 5


def drawn(length, removing, fastest=1.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(BATCH, length, HEADS, *shape, generator=generator, dtype=dtype)

    query, key, value = normal(KEY), normal(KEY), normal(VALUE)
    log_decay = -fastest * torch.rand(BATCH, length, HEADS, KEY, generator=generator, dtype=dtype)
    taken = (0.3 * normal(KEY), 0.3 * normal(KEY)) if removing else (None, None)
    return query, Writing(key, value, log_decay, *taken)


def definition(query, writing, initial, resets=None, valid=None):
    weights = torch.zeros(BATCH, HEADS, KEY, VALUE, dtype=query.dtype) if initial is None else initial
    outputs = []
    for t in range(query.shape[1]):
        exists = torch.ones(BATCH, dtype=torch.bool) if valid is None else valid[:, t]
        before = weights
        if resets is not None:
            weights = weights.masked_fill((resets[:, t] & exists)[:, None, None, None], 0.0)
        found = weights
        weights = writing.log_decay[:, t].exp()[..., None] * weights
        weights = weights + writing.key[:, t, ..., None] * writing.value[:, t, ..., None, :]
        if writing.probe is not None:
            answer = torch.einsum("bhk,bhkm->bhm", writing.probe[:, t], found)
            weights = weights + writing.insert[:, t, ..., None] * answer[..., None, :]
        weights = torch.where(exists[:, None, None, None], weights, before)
        outputs.append(torch.einsum("bhk,bhkm->bhm", query[:, t], weights))
    return torch.stack(outputs, 1), weights


@pytest.mark.parametrize("removing", [False, True])
@pytest.mark.parametrize("length", [1, 16, 41, 150])
@pytest.mark.parametrize("fastest", [1.0, 60.0], ids=["slow", "fast"])
def test_it_is_the_definition(removing, length, fastest):
    """Also where a channel forgets by e^−60 a token, which products of decays would overflow on."""
    query, writing = drawn(length, removing, fastest)
    initial = torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)
    found = recurrence(query, writing, initial, None, None)
    torch.testing.assert_close(found, definition(query, writing, initial), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("removing", [False, True])
@pytest.mark.parametrize(("length", "early"), [(41, 7), (150, 70)])
def test_documents_padding_and_pieces(removing, length, early):
    query, writing = drawn(length, removing)
    generator = torch.Generator().manual_seed(1)
    resets = torch.rand(BATCH, length, generator=generator) < 0.1
    valid = torch.arange(length) < torch.tensor([[length], [length - 12]])
    initial = torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)
    output, weights = recurrence(query, writing, initial, Tokens(query, 0, resets, valid).starts(), valid)
    expected, last = definition(query, writing, initial, resets, valid)
    torch.testing.assert_close(weights, last, rtol=1e-10, atol=1e-12)
    kept = valid[..., None, None]
    torch.testing.assert_close(output * kept, expected * kept, rtol=1e-10, atol=1e-12)
    whole = recurrence(query, writing, initial, resets, None)
    pieces = slice(None, early), slice(early, None)
    one, other = (Writing(*(None if x is None else x[:, part] for x in writing)) for part in pieces)
    first = recurrence(query[:, pieces[0]], one, initial, resets[:, pieces[0]], None)
    rest = recurrence(query[:, pieces[1]], other, first[1], resets[:, pieces[1]], None)
    torch.testing.assert_close(torch.cat((first[0], rest[0]), 1), whole[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rest[1], whole[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("removing", [False, True])
@pytest.mark.parametrize("at_once", [2**23, 1], ids=["all rows", "row by row"])
def test_gradients_are_those_of_the_definition(removing, at_once, monkeypatch):
    """Over two chunks and documents, of the carried weights too; rows that are computed apart are the same rows."""
    monkeypatch.setattr("muse_peers.recurrence.AT_ONCE", at_once)
    query, writing = drawn(100, removing)
    resets = torch.rand(BATCH, 100, generator=torch.Generator().manual_seed(1)) < 0.05
    initial = torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64).requires_grad_()
    inputs = [x if x is None else x.requires_grad_() for x in (query, *writing)]
    gradients = []
    for compute in (recurrence, definition):
        output, weights = compute(inputs[0], Writing(*inputs[1:]), initial, resets, None)
        loss = output.square().sum() + weights.square().sum()
        gradients.append(torch.autograd.grad(loss, [initial, *(x for x in inputs if x is not None)]))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("removing", [False, True])
def test_second_derivatives_are_those_of_the_definition(removing, monkeypatch):
    """Over three chunks: what goes from one to the next has a gradient written by hand."""
    monkeypatch.setattr("muse_peers.recurrence.CHUNK", 4)
    query, writing = drawn(11, removing)
    initial = torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64).requires_grad_()
    inputs = [x if x is None else x.requires_grad_() for x in (query, *writing)]
    leaves = [initial, *(x for x in inputs if x is not None)]
    gradients = []
    for compute in (recurrence, definition):
        output, weights = compute(inputs[0], Writing(*inputs[1:]), initial, None, None)
        first = torch.autograd.grad(output.pow(3).sum() + weights.pow(3).sum(), leaves, create_graph=True)
        gradients.append(torch.autograd.grad(sum(x.square().sum() for x in first), leaves))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_a_slow_channel_after_a_fast_token_is_exact_in_float32():
    """The decays between two tokens are not a difference of sums that a fast token before them makes large."""
    query, writing = drawn(60, False, dtype=torch.float32)
    writing.log_decay[:, :20] = -1e5
    writing.log_decay[:, 20:] *= 1e-3
    found = recurrence(query, writing, None, None, None)[0]
    doubled = Writing(*(None if x is None else x.double() for x in writing))
    expected = definition(query.double(), doubled, None)[0]
    assert (found - expected).abs().max() < 2e-6 * expected.abs().max()
