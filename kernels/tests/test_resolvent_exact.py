"""The resolvent on the CPU is the dense inverse's: outputs, gradients to every input, carried state, second order."""

import functools

import pytest
import torch

from muse_kernels import causal_resolvent_apply, causal_resolvent_diagonal, native, reference, resolvent_diagonal
from muse_kernels import torch as lanes
from muse_kernels.reference.resolvent import (
    causal_resolvent_apply_dense,
    causal_resolvent_diagonal_dense,
    resolvent_diagonal_dense,
)
from muse_kernels.testing.resolvent import assert_close, draw, results

EXACT = 1e-10
KINDS = ("complex", "real", "constant", "strided")


@pytest.mark.parametrize("backend", (reference, lanes, native))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", (1, 2, 3, 17, 40))
def test_equals_the_dense_inverse(backend, kind, sites):
    problem = draw(sites, kind)
    for ours, dense in (
        (lambda p: p.full((lanes if backend is native else backend).resolvent_diagonal),
         lambda p: p.full(resolvent_diagonal_dense)),
        (lambda p: p.left(backend.causal_resolvent_diagonal), lambda p: p.left(causal_resolvent_diagonal_dense)),
        (lambda p: p.apply(backend.causal_resolvent_apply), lambda p: p.apply(causal_resolvent_apply_dense)),
    ):
        assert_close(results(problem, ours), results(problem, dense), EXACT, zeros=sites == 1)


RUNS = (
    lambda p, b: p.full(b.resolvent_diagonal),
    lambda p, b: p.left(b.causal_resolvent_diagonal),
    lambda p, b: p.apply(b.causal_resolvent_apply),
)


@functools.cache
def by_recursion(kind, sites, run):
    found = results(draw(sites, kind), lambda p: run(p, reference))
    return [x if x is None else x.detach() for x in found]


@pytest.mark.parametrize("backend", (lanes, native))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", (333, 1024))
def test_equals_the_recursion_over_many_chunks(backend, kind, sites):
    for run in RUNS[backend is native :]:
        found = results(draw(sites, kind), lambda p, run=run: run(p, backend))
        assert_close(found, by_recursion(kind, sites, run), EXACT)


@pytest.mark.parametrize("backend", ("torch", "native"))
@pytest.mark.parametrize("kind", ("complex", "real", "constant"))
def test_gradcheck_of_first_and_second_derivatives(backend, kind):
    p = draw(4, kind, batch=1, width=2)
    tridiagonal = (p.diagonal, p.lower, p.upper, p.energy)
    left = lambda *x: causal_resolvent_diagonal(*x[:4], initial=x[4], backend=backend)  # noqa: E731
    apply = lambda *x: sum(causal_resolvent_apply(*x[:5], initial=x[5:], backend=backend), ())  # noqa: E731
    for function, inputs in (
        (resolvent_diagonal, tridiagonal),
        (left, (*tridiagonal, p.theta)),
        (apply, (*tridiagonal, p.values, p.theta, p.applied)),
    ):
        # Along one direction of all at once; entry by entry the first are held to the dense inverse's above.
        assert torch.autograd.gradcheck(function, inputs, atol=1e-6, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, atol=1e-6, fast_mode=True)


def test_two_sided_diagonal_ignores_the_first_couplings():
    p = draw(9)
    gradients = torch.autograd.grad(p.full(resolvent_diagonal).abs().sum(), (p.lower, p.upper))
    assert all((g[..., 0] == 0).all() and (g[..., 1] != 0).all() for g in gradients)


def test_the_causal_ones_see_nothing_later():
    p = draw(20)
    theta, _ = p.left(causal_resolvent_diagonal)
    (y, _), _ = p.apply(causal_resolvent_apply)
    for output in (theta[..., 9], y[..., 9, :]):
        for leaf, dim in ((p.diagonal, -1), (p.lower, -1), (p.upper, -1), (p.values, -2)):
            (g,) = torch.autograd.grad(output.abs().sum(), leaf, retain_graph=True, allow_unused=True)
            if g is not None:
                assert (g.narrow(dim, 10, 10) == 0).all()
                assert (g.narrow(dim, 9, 1) != 0).any()


def test_compiled_without_a_graph_break():
    p = draw(30, dtype=torch.float32)
    call = lambda p: (p.full(resolvent_diagonal), p.apply(causal_resolvent_apply))  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_close(results(p, compiled), results(p, call), 1e-6)
