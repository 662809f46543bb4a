"""The recurrence with a decay per channel: its definition token by token, documents, padding and carried state."""

import pytest
import torch
from muse_peers.recurrence import Writing, recurrence

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
@pytest.mark.parametrize("length", [1, 16, 41])
@pytest.mark.parametrize("fastest", [1.0, 60.0], ids=["slow", "fast"])
def test_it_is_the_definition(removing, length, fastest):
    """Also where a channel forgets by e^−60 a token, which products of decays would overflow on."""
    query, writing = drawn(length, removing, fastest)
    initial = torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)
    found = recurrence(query, writing, initial, None, None)
    torch.testing.assert_close(found, definition(query, writing, initial), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("removing", [False, True])
def test_documents_padding_and_pieces(removing):
    query, writing = drawn(41, removing)
    generator = torch.Generator().manual_seed(1)
    resets = torch.rand(BATCH, 41, generator=generator) < 0.1
    valid = torch.arange(41) < torch.tensor([[41], [29]])
    initial = torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)
    output, weights = recurrence(query, writing, initial, resets, valid)
    expected, last = definition(query, writing, initial, resets, valid)
    torch.testing.assert_close(weights, last, rtol=1e-10, atol=1e-12)
    kept = valid[..., None, None]
    torch.testing.assert_close(output * kept, expected * kept, rtol=1e-10, atol=1e-12)
    whole = recurrence(query, writing, initial, resets, None)
    early, late = (
        Writing(*(None if x is None else x[:, part] for x in writing)) for part in (slice(None, 7), slice(7, None))
    )
    first = recurrence(query[:, :7], early, initial, resets[:, :7], None)
    rest = recurrence(query[:, 7:], late, first[1], resets[:, 7:], None)
    torch.testing.assert_close(torch.cat((first[0], rest[0]), 1), whole[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rest[1], whole[1], rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_the_definition():
    query, writing = drawn(20, True)
    inputs = [x.requires_grad_() for x in (query, *writing)]
    gradients = []
    for compute in (lambda: recurrence(inputs[0], Writing(*inputs[1:]), None, None, None)[0],
                    lambda: definition(inputs[0], Writing(*inputs[1:]), None)[0]):
        gradients.append(torch.autograd.grad(compute().square().sum(), inputs))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)
