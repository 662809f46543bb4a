"""Fast weights on the CPU: the chunkwise form and the one in C are the recursion, exactly, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_kernels.native import fast_weights as by_token
from muse_kernels.reference import fast_weights as reference
from muse_kernels.testing.fast_weights import assert_close, draw, results
from muse_kernels.torch import fast_weights as chunkwise

RULES = ("hebbian", "delta")
READS = ("after", "before")
EXACT = 1e-10


@pytest.fixture(params=(chunkwise, by_token), ids=("torch", "native"), scope="module")
def backend(request):
    """The operation by plain torch and in C."""
    return request.param


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("resets", (False, True))
@pytest.mark.parametrize("tokens", (1, 2, 17, 64, 97))
def test_equals_sequential(backend, rule, read, resets, tokens):
    problem = draw(tokens, resets=resets)
    expected = results(problem, reference, rule=rule, read=read)
    for chunk in (1, 5, 16, 64):
        assert_close(results(problem, backend, rule=rule, read=read, chunk=chunk), expected, EXACT)


@pytest.mark.parametrize("rule", RULES)
def test_recursion_by_hand(rule):
    """Two tokens of one head written out, so that the reference itself is held to the formula."""
    p = draw(2, batch=1, heads=1)
    q, k, v, g, b = p.query[0, :, 0], p.key[0, :, 0], p.value[0, :, 0], p.log_decay[0, :, 0], p.rate[0, :, 0]
    w = p.initial[0, 0]
    expected = []
    for t in range(2):
        forget = torch.eye(5, dtype=w.dtype) - (b[t] * torch.outer(k[t], k[t]) if rule == "delta" else 0)
        w = g[t].exp() * forget @ w + b[t] * torch.outer(k[t], v[t])
        expected.append(w.T @ q[t])
    output, final = p.run(reference, rule=rule)
    torch.testing.assert_close(output[0, :, 0], torch.stack(expected))
    torch.testing.assert_close(final[0, 0], w)


@pytest.mark.parametrize("backend", (reference, chunkwise, by_token))
@pytest.mark.parametrize("rule", RULES)
def test_read_before_is_the_state_the_previous_token_left(backend, rule):
    problem = draw(20, resets=True)
    before, _ = problem.run(backend, rule=rule, read="before")
    problem.query = torch.cat((problem.query[:, 1:], problem.query[:, :1]), dim=1)
    after, _ = problem.run(backend, rule=rule)
    kept = ~problem.resets[:, 1:, None, None]
    torch.testing.assert_close(before[:, 1:], after[:, :-1] * kept)
    assert (before[problem.resets] == 0).all()


@pytest.mark.parametrize("backend", (reference, chunkwise, by_token))
def test_reset_at_the_first_token_drops_the_carried_state(backend):
    problem = draw(9, resets=True)
    problem.resets[:, 0] = True
    with_state, _ = problem.run(backend)
    problem.initial = torch.zeros_like(problem.initial)
    torch.testing.assert_close(problem.run(backend)[0], with_state)


@settings(max_examples=20, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    cuts=st.lists(st.integers(1, 39), unique=True, max_size=4),
    chunk=st.integers(1, 16),
    resets=st.booleans(),
)
def test_any_split_with_carried_state_is_the_whole(backend, rule, cuts, chunk, resets):
    problem = draw(40, resets=resets)
    whole, final = problem.run(backend, rule=rule)
    state, outputs = problem.initial, []
    edges = [0, *sorted(cuts), 40]
    for start, stop in zip(edges, edges[1:], strict=False):
        part = [x[:, start:stop] for x in problem.leaves[:5]]
        starts = None if problem.resets is None else problem.resets[:, start:stop]
        output, state = backend(*part, rule=rule, chunk=chunk, initial=state, resets=starts)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=0, atol=1e-11)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("read", READS)
def test_first_and_second_derivatives(backend, rule, read):
    problem = draw(7, batch=1, heads=1, key_width=3, value_width=2, resets=True)

    def run(*leaves):
        return backend(*leaves[:5], rule=rule, read=read, chunk=3, initial=leaves[5], resets=problem.resets)

    # Along one direction of all inputs and outputs at once; entry by entry the first are held to the recursion's above.
    assert torch.autograd.gradcheck(run, problem.leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, problem.leaves, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("rule", RULES)
def test_strided_and_expanded_inputs(backend, rule):
    problem = draw(30)
    expected = problem.run(reference, rule=rule)
    heads_first = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in problem.leaves[:5]]
    assert not heads_first[0].is_contiguous()
    strided = backend(*heads_first, rule=rule, chunk=8, initial=problem.initial)
    torch.testing.assert_close(strided, expected, rtol=0, atol=1e-12)

    shared = problem.key[:, :, :1].expand(-1, -1, 2, -1)
    arguments = (problem.query, shared, problem.value, problem.log_decay, problem.rate)
    torch.testing.assert_close(backend(*arguments, rule=rule), reference(*arguments, rule=rule), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", (reference, chunkwise, by_token))
@pytest.mark.parametrize("rule", RULES)
def test_empty_batch(backend, rule):
    output, final, *gradients = results(draw(6, batch=0), backend, rule=rule)
    assert output.shape == (0, 6, 2, 3) and final.shape == (0, 2, 5, 3)
    assert [g.shape[0] for g in gradients] == [0] * 6


@pytest.mark.parametrize("rule", RULES)
def test_float32_is_as_good_as_the_sequential_float32_loop(backend, rule):
    problem = draw(600, batch=1, key_width=16, value_width=8, dtype=torch.float32)
    exact, _ = problem.to(torch.float64).run(reference, rule=rule)
    loop, state = [], problem.initial
    for t in range(600):
        token = [x[:, t : t + 1] for x in problem.leaves[:5]]
        output, state = backend(*token, rule=rule, chunk=1, initial=state)
        loop.append(output)
    row = exact.abs().amax(dim=-1)
    loop_error = ((torch.cat(loop, dim=1) - exact).abs().amax(dim=-1) / row).max()
    error = ((problem.run(backend, rule=rule)[0] - exact).abs().amax(dim=-1) / row).max()
    assert 0 < error <= 10 * loop_error + 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_inputs_are_only_rounded_once(backend, rule):
    problem = draw(100, key_width=16, value_width=8, dtype=torch.bfloat16)
    expected, expected_final = problem.to(torch.float64).run(reference, rule=rule)
    output, final = problem.run(backend, rule=rule)
    assert output.dtype == torch.bfloat16 and final.dtype == torch.float32
    assert (output - expected).abs().max() <= 2**-8 * expected.abs().max()
    assert (final - expected_final).abs().max() <= 1e-5 * expected_final.abs().max()


def test_autocast_does_not_lower_the_accumulation(backend):
    problem = draw(100, key_width=16, value_width=8, dtype=torch.float32)
    plain = problem.run(backend, rule="delta")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(problem.run(backend, rule="delta"), plain, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_strong_decay_and_long_chunks_stay_finite(backend, rule):
    """exp(g_i - g_j) against causality would be exp(+3000) here."""
    problem = draw(64)
    problem.log_decay = torch.full_like(problem.log_decay, -50.0).requires_grad_()
    assert_close(results(problem, backend, rule=rule), results(problem, reference, rule=rule), EXACT)


def test_a_huge_decay_at_a_reset_is_harmless(backend):
    problem = draw(32, resets=True, dtype=torch.float32)
    with torch.no_grad():
        problem.log_decay[problem.resets] = -1e6
    exact, _ = problem.to(torch.float64).run(reference)
    assert (problem.run(backend)[0] - exact).abs().max() < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_driven_norm_law(backend, rule):
    """||W_t|| <= e^g ||W_{t-1}|| + rate ||k|| ||v||; for delta it holds because 0 <= rate ||k||^2 <= 2."""
    problem = draw(1, batch=64)
    _, final = problem.run(backend, rule=rule)
    norms = [torch.linalg.matrix_norm(w) for w in (final, problem.initial)]
    driven = problem.rate[:, 0] * problem.key[:, 0].norm(dim=-1) * problem.value[:, 0].norm(dim=-1)
    assert (norms[0] <= problem.log_decay[:, 0].exp() * norms[1] + driven + 1e-12).all()


@pytest.mark.parametrize("rule", RULES)
def test_compiles_without_a_graph_break(backend, rule):
    problem = draw(20)
    compiled = torch.compile(backend, backend="aot_eager", fullgraph=True)
    assert_close(results(problem, compiled, rule=rule, chunk=8), results(problem, backend, rule=rule, chunk=8), 1e-12)
