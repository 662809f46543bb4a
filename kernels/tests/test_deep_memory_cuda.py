"""The deep memory on a GPU against the torch form in float64 on the same rounded inputs."""

import pytest
import torch

from muse_kernels.testing.deep_memory import LEAVES, draw
from muse_kernels.torch import deep_memory as chunkwise

by_triton = pytest.importorskip("muse_kernels.triton").deep_memory
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

RULE = {"orthogonalise": False}
HALVED = ("query", "key", "value")


def test_backward_leaves_nothing_uncomputed():
    """Long, at the benchmark's size: every gradient is finite, and the same a second time."""
    problem = draw(2048, batch=8, heads=8, key_width=64, hidden=128, chunk=64, rate=0.01, initial=False, **RULE)
    problem = problem.to(torch.float32, "cuda")
    for name in HALVED:
        setattr(problem, name, getattr(problem, name).detach().bfloat16().requires_grad_())
    once, again = results(problem, by_triton), results(problem, by_triton)
    for name, x in once.items():
        assert x.isfinite().all(), name
        assert torch.equal(x, again[name]) or (x - again[name]).norm() <= 1e-3 * x.norm(), name


def results(problem, backend, **options) -> dict:
    """Output, final state and gradients under cotangents that bfloat16 holds exactly."""
    output, final = problem.run(backend, **options)
    returned = {"output": output, "weights": final.weights, "momentum": final.momentum}
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=random).bfloat16().cuda() for x in returned.values()]
    named = {name: getattr(problem, name) for name in LEAVES}
    leaves = {name: x for name, x in named.items() if x is not None}
    cotangents = [w.to(x.dtype) for w, x in zip(weights, returned.values())]
    found = torch.autograd.grad(list(returned.values()), list(leaves.values()), cotangents, allow_unused=True)
    # A stream that goes on and meets no document start does not read the learned weights.
    return returned | {f"gradient of {name}": x for name, x in zip(leaves, found) if x is not None}


CASES = {
    "inside a chunk": {"tokens": 131, "chunk": 16},
    "from the start of a stream": {"tokens": 160, "chunk": 16, "initial": False},
    "windows and documents": {"tokens": 333, "chunk": 64, "window": 5, "resets": True},
    "without momentum": {
        **{"tokens": 200, "chunk": 32, "window": 3, "resets": True, "kind": "without momentum"},
        **{"key_width": 32, "hidden": 64},
    },
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.bfloat16, 6e-2)], ids=str)
def test_near_float64(options, dtype, tolerance):
    """||result - exact|| <= tolerance ||exact||, for the output, the final state and every gradient."""
    sizes = {"heads": 3, "key_width": 32, "hidden": 64, "rate": 0.5 / options["chunk"], "orthogonalise": False}
    sizes |= {"dtype": torch.float32}
    sizes |= {"key_width": 64, "hidden": 128} if dtype == torch.bfloat16 else {}
    given = {name: x for name, x in options.items() if name != "tokens"}
    problem = draw(options["tokens"], **{**sizes, **given}).to(torch.float32, "cuda")
    if dtype == torch.bfloat16:
        for name in HALVED:
            setattr(problem, name, getattr(problem, name).detach().bfloat16().requires_grad_())
    exact = results(problem.to(torch.float64), chunkwise)
    assert all(x.isfinite().all() for x in exact.values())
    for name, got in results(problem, by_triton).items():
        error = ((got - exact[name]).norm() / exact[name].norm()).item()
        assert error <= tolerance, f"{name}: {error:.1e}"


def bent(problem, share: float):
    """The problem with keys and values off by a normal share of themselves."""
    random = torch.Generator("cuda").manual_seed(2)
    moved = problem.to(torch.float64)
    for name in ("key", "value"):
        x = getattr(moved, name).detach()
        noise = torch.randn(x.shape, generator=random, device="cuda", dtype=torch.float64)
        setattr(moved, name, (x * (1 + share * noise)).requires_grad_())
    return moved


ORTHOGONALISED = {
    "inside a chunk": (torch.float32, {"tokens": 131, "chunk": 16, "key_width": 64, "hidden": 128}),
    "from the start of a stream": (torch.float32, {"tokens": 80, "chunk": 16, "initial": False}),
    "windows and documents": (torch.float32, {"tokens": 333, "chunk": 64, "window": 5, "resets": True}),
    "bfloat16": (torch.bfloat16, {"tokens": 205, "chunk": 64, "initial": False, "key_width": 64, "hidden": 128}),
    "bfloat16, windows and documents": (
        torch.bfloat16,
        {"tokens": 333, "chunk": 64, "window": 5, "resets": True, "key_width": 64, "hidden": 128},
    ),
}


@pytest.mark.parametrize("dtype, options", ORTHOGONALISED.values(), ids=ORTHOGONALISED)
def test_orthogonalised_updates_near_float64(dtype, options):
    """Newton-Schulz makes small singular values of a momentum large, and rounding with them: a result is held to the
    error of exact arithmetic on inputs off by a rounding, and to be the same a second time."""
    options = {"heads": 3, "key_width": 32, "hidden": 64, "rate": 0.5 / options["chunk"], **options}
    problem = draw(**options, dtype=torch.float32).to(torch.float32, "cuda")
    if dtype == torch.bfloat16:
        for name in HALVED:
            setattr(problem, name, getattr(problem, name).detach().bfloat16().requires_grad_())
    share, tolerance = (2**-9, 6e-2) if dtype == torch.bfloat16 else (2**-18, 2e-4)
    exact = results(problem.to(torch.float64), chunkwise)
    moved = results(bent(problem, share), chunkwise)
    once, again = results(problem, by_triton), results(problem, by_triton)
    for name, got in once.items():
        scale = exact[name].norm()
        error, own = ((x - exact[name]).norm() / scale for x in (got, moved[name]))
        assert own < 0.1, f"{name}: of a condition that tells nothing, {own.item():.1e}"
        assert error <= tolerance + 4 * own, f"{name}: {error.item():.1e}, by inputs alone {own.item():.1e}"
        assert torch.equal(got, again[name]), f"{name}: differs from run to run"


@pytest.mark.parametrize("recompute", [1, 4])
def test_recomputed_states_are_the_same(recompute):
    problem = draw(320, heads=3, key_width=32, hidden=64, chunk=16, offset=0, rate=0.03, **RULE)
    problem = problem.to(torch.float32, "cuda")
    whole, pieced = results(problem, by_triton), results(problem, by_triton, recompute=recompute)
    for name, x in whole.items():
        assert (x - pieced[name]).norm() <= 1e-5 * x.norm(), name
