"""One token at a time, as a generation reads, gives what all tokens at once give."""

import pytest
import torch

from muse_kernels import causal_resolvent_apply, fast_weights


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("rule", ["hebbian", "delta"])
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_fast_weights(backend, rule, read, with_resets):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 9, 3, size, dtype=torch.float64) for size in (4, 4, 5))
    key = torch.nn.functional.normalize(key, dim=-1)
    decay, rate = -torch.rand(2, 9, 3, dtype=torch.float64), torch.rand(2, 9, 3, dtype=torch.float64)
    resets = None
    if with_resets:
        resets = torch.zeros(2, 9, dtype=torch.bool)
        resets[0, 4] = resets[1, 0] = resets[1, 8] = True
    initial = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    given = {"rule": rule, "read": read, "backend": backend}
    whole, final = fast_weights(query, key, value, decay, rate, initial=initial, resets=resets, **given)
    state, outputs = initial, []
    for at in range(9):
        token = [x[:, at : at + 1] for x in (query, key, value, decay, rate)]
        reset = None if resets is None else resets[:, at : at + 1]
        output, state = fast_weights(*token, initial=state, resets=reset, **given)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_causal_resolvent_apply(backend):
    torch.manual_seed(0)
    diagonal = torch.randn(2, 9, dtype=torch.complex128) - 0.1j
    values = torch.randn(2, 9, 3, dtype=torch.complex128)
    (whole, theta), final = causal_resolvent_apply(diagonal, 0.7, 0.7, 0.2 + 0.3j, values, backend=backend)
    state, found = None, []
    for at in range(9):
        token = slice(at, at + 1)
        (y, _), state = causal_resolvent_apply(
            diagonal[:, token], 0.7, 0.7, 0.2 + 0.3j, values[:, token], initial=state, backend=backend
        )
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=1e-12, atol=1e-12)
