"""Deep memory: the torch form against the float64 definition, in pieces, with documents, and in its special cases."""

import pytest
import torch
from torch import Tensor

import muse_kernels
from muse_kernels import KernelRequest, reference
from muse_kernels import torch as by_torch
from muse_kernels.reference.deep_memory import answer
from muse_kernels.testing.deep_memory import assert_close, draw, results
from muse_kernels.torch.deep_memory import orthogonalised

OPTIONS = {
    "orthogonalised": {},
    "gradient": {"orthogonalise": False},
    "windows": {"window": 3},
    "windows across chunks": {"window": 6, "orthogonalise": False},
    "chunk of one": {"chunk": 1, "orthogonalise": False},
    "one chunk": {"chunk": 32, "window": 2},
}


@pytest.mark.parametrize("resets", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("kind", ["gated", "linear", "without momentum"])
def test_the_torch_form_follows_the_definition(kind: str, options: dict, resets: bool):
    problem = draw(13, kind=kind, resets=resets, **options)
    expected = results(problem, reference.deep_memory)
    assert_close(results(problem, by_torch.deep_memory), expected, 1e-10)
    assert_close(results(problem, by_torch.deep_memory, recompute=2), expected, 1e-10)


@pytest.mark.parametrize("options", [{}, {"orthogonalise": False, "window": 6}], ids=["orthogonalised", "windows"])
@pytest.mark.parametrize("sizes", [(1,), (5, 1, 2), (7, 20)], ids=str)
def test_pieces_give_what_the_whole_gives(options: dict, sizes: tuple[int, ...]):
    problem = draw(19, resets=True, chunk=4, **options)
    whole, final = problem.run(by_torch.deep_memory)
    outputs, state, start, turn = [], problem.initial, 0, 0
    while start < 19:
        stop = min(19, start + sizes[turn % len(sizes)])
        output, state = problem.piece(start, stop, state).run(by_torch.deep_memory)
        outputs.append(output)
        start, turn = stop, turn + 1
    assert (torch.cat(outputs, 1) - whole).abs().max() <= 1e-10
    for name, expected in final._asdict().items():
        assert torch.allclose(getattr(state, name), expected, rtol=1e-10, atol=1e-10), name


def test_a_document_is_as_if_alone_on_the_same_grid():
    problem = draw(17, resets=False, chunk=4, window=3)
    starts = torch.zeros(2, 17, dtype=torch.bool)
    starts[:, 6] = True
    both, _ = problem.with_resets(starts).run(by_torch.deep_memory)
    alone, _ = problem.piece(6, 17, None).run(by_torch.deep_memory)
    assert (both[:, 6:] - alone).abs().max() <= 1e-12


def test_reads_completed_chunks_alone():
    """The output at t has a gradient to keys of chunks that end before t, and exactly none to its own chunk's."""
    problem = draw(13, chunk=4, offset=0)
    output, _ = problem.run(by_torch.deep_memory)
    for t, first in ((3, 0), (4, 4), (11, 8), (12, 12)):
        (reached,) = torch.autograd.grad(output[0, t].sum(), problem.key, retain_graph=True)
        assert not reached[0, first:].any() and not reached[1].any()
        assert first == 0 or reached[0, :first].abs().amax((-1, -2)).min() > 0


def test_window_one_without_orthogonalisation_is_the_rule_of_titans():
    """S = m S - r grad, M = a M + S, token by token, with the gradient by autograd."""
    problem = draw(9, chunk=1, orthogonalise=False, initial=False)
    actual, _ = problem.run(by_torch.deep_memory)
    gates = [x.detach() for x in (problem.rate, problem.log_momentum.exp(), problem.log_decay.exp())]
    memory = problem.weights.detach().expand(2, *problem.weights.shape)
    surprise = torch.zeros_like(memory)
    for t in range(9):
        assert (reference_answer(memory, problem.query[:, t]) - actual[:, t]).abs().max() <= 1e-10
        rate, momentum, decay = (x[:, t, :, None, None, None] for x in gates)
        memory = memory.detach().requires_grad_()
        loss = (reference_answer(memory, problem.key[:, t].detach()) - problem.value[:, t].detach()).square().sum() / 2
        surprise = momentum * surprise - rate * torch.autograd.grad(loss, memory)[0]
        memory = decay * memory + surprise


def reference_answer(memory: Tensor, x: Tensor) -> Tensor:
    return answer(memory, x[:, :, None])[:, :, 0]


@pytest.mark.parametrize("decays", [False, True])
def test_a_linear_memory_of_window_one_is_the_delta_rule(decays: bool):
    """Exactly without decay; with decay a, which the delta rule applies before it corrects, for v / a and a r."""
    problem = draw(12, kind="linear", chunk=1, orthogonalise=False, initial=False)
    log_decay = problem.log_decay.detach() * decays
    query, key, value, rate = (x.detach() for x in (problem.query, problem.key, problem.value, problem.rate))
    kept = log_decay.exp()
    ours, state = by_torch.deep_memory(
        *(query, key, value / kept[..., None], rate * kept, None, log_decay, problem.weights),
        chunk=1,
        orthogonalise=False,
    )
    start = problem.weights[:, 0].expand(2, *problem.weights[:, 0].shape)
    delta, final = reference.fast_weights(
        query, key, value, log_decay, rate, rule="delta", initial=start, read="before"
    )
    assert (ours - delta).abs().max() <= 1e-10
    assert (state.weights[:, :, 0] - final).abs().max() <= 1e-10


def test_singular_values_come_near_one():
    x = torch.randn(4, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    x = 1e-3 * (left * torch.linspace(0.1, 1.0, 6, dtype=torch.float64)) @ right
    for matrix in (x, x.transpose(-1, -2)):
        values = torch.linalg.svdvals(orthogonalised(matrix))
        assert values.min() > 0.6 and values.max() < 1.2


def test_gradients_are_right():
    problem = draw(5, batch=1, heads=1, key_width=2, hidden=3, chunk=2, window=2)
    def call(*leaves: Tensor):
        output, final = problem.rebuilt(leaves).run(by_torch.deep_memory)
        return output, final.weights, final.momentum

    assert torch.autograd.gradcheck(call, problem.leaves, eps=1e-6, atol=1e-5)


def test_learned_weights_have_a_gradient_through_a_reset():
    problem = draw(9, resets=True, initial=True)
    found = torch.autograd.grad(problem.run(by_torch.deep_memory)[0].square().sum(), problem.weights)[0]
    assert found.abs().amax((-1, -2)).min() > 0


def test_runs_in_inference_mode():
    with torch.inference_mode():
        problem = draw(9, resets=True)
        output, _ = problem.run(by_torch.deep_memory)
    expected, _ = draw(9, resets=True).run(by_torch.deep_memory)
    assert (output - expected.detach()).abs().max() <= 1e-12


def test_float32_is_near():
    problem = draw(24, chunk=8, dtype=torch.float32)
    expected = results(problem.to(torch.float64), reference.deep_memory)
    assert_close(results(problem, by_torch.deep_memory), expected, 2e-3)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"rate": torch.zeros(2, 3, 2)}, r"rate must be \(B, N, H\) = \(2, 5, 2\)"),
        ({"weights": torch.zeros(2, 2, 4, 6)}, r"weights must be \(H, 3, K, E\)"),
        ({"weights": torch.zeros(2, 3, 5, 6)}, r"weights must be \(H, P, K, E\) = \(2, 3, 4, 6\)"),
        ({"value": torch.zeros(2, 5, 2, 3)}, r"value must be \(B, N, H, M\) = \(2, 5, 2, 4\)"),
        ({"resets": torch.zeros(2, 5)}, "resets must be bool"),
        ({"query": torch.zeros(2, 5, 2, 4, dtype=torch.float16)}, "bfloat16, float32 or float64"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_a_wrong_argument_is_named(change: dict, words: str):
    problem = draw(5, initial=False)
    names = ("query", "key", "value", "rate", "log_momentum", "log_decay", "weights")
    arguments = {name: getattr(problem, name) for name in names} | change
    with pytest.raises(ValueError, match=words):
        muse_kernels.deep_memory(**arguments)


def test_a_state_of_other_options_is_refused():
    problem = draw(5, window=3)
    with pytest.raises(ValueError, match=r"initial.window_key must be \(B, c - 1, H, K\) = \(2, 1, 2, 4\)"):
        problem.run(muse_kernels.deep_memory, window=2)
    with pytest.raises(ValueError, match="initial.pending must be"):
        problem.run(muse_kernels.deep_memory, orthogonalise=False)


def test_triton_names_what_it_does_not_serve_on_a_gpu():
    sizes = {"key": 64, "hidden": 128, "matrices": 3}

    def chosen(*needs: str, **changes: int) -> muse_kernels.BackendSelection:
        request = KernelRequest("deep_memory", "cuda", "bfloat16", {**sizes, **changes}, frozenset(needs))
        return muse_kernels.select_backend(request)

    assert "gated memories" in chosen(matrices=1).refusals["triton"]
    assert "not 48" in chosen(key=48).refusals["triton"]
    assert "second derivatives" in chosen("double_backward").refusals["triton"]


def test_values_are_checked_when_asked_for():
    problem = draw(5)
    with torch.no_grad(), muse_kernels.debug():
        problem.log_decay[0, 2] = 0.1
        with pytest.raises(ValueError, match="log_decay must be <= 0"):
            problem.run(muse_kernels.deep_memory)
