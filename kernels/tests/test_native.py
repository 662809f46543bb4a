"""The backend in C: when it refuses, what it keeps, and that threads change nothing."""

import os
import subprocess
import sys

import pytest
import torch

from muse_kernels import KernelRequest, causal_resolvent_apply, fast_weights, select_backend
from muse_kernels.compiled import find_compiler, library
from muse_kernels.testing.fast_weights import draw, results

ASK = """
from muse_kernels import KernelRequest, select_backend
chosen = select_backend(KernelRequest("fast_weights", "cpu", "float32"))
print(chosen.backend, chosen.refusals.get("native"))
"""


def asked(**environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", ASK], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_compiler_torch_serves_and_the_reason_is_said(tmp_path):
    empty = {"PATH": str(tmp_path), "CC": "", "MUSE_KERNELS_CACHE": str(tmp_path)}
    assert asked(**empty) == "torch there is no C compiler (cc, gcc, clang, or one that CC names)"
    said = asked(CC="no-such-compiler", MUSE_KERNELS_CACHE=str(tmp_path))
    assert said.startswith("torch the C compiler no-such-compiler could not be run")
    failing = tmp_path / "failing"
    failing.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "kernels.c: error: no" >&2; exit 1; }\n')
    failing.chmod(0o755)
    said = asked(CC=str(failing), MUSE_KERNELS_CACHE=str(tmp_path))
    assert said == f"torch the C compiler {failing} failed: kernels.c: error: no"


def test_a_library_is_compiled_once_and_not_kept_where_that_fails(tmp_path):
    cache = {"MUSE_KERNELS_CACHE": str(tmp_path / "cache")}
    assert asked(**cache) == "native None"
    (kept,) = (tmp_path / "cache").iterdir()
    before = kept.stat().st_mtime_ns
    assert asked(**cache) == "native None" and kept.stat().st_mtime_ns == before
    (tmp_path / "file").touch()
    assert "could not be made in" in asked(MUSE_KERNELS_CACHE=str(tmp_path / "file"))


def test_on_a_gpu_and_for_other_operations_it_refuses():
    request = KernelRequest("fast_weights", "cuda", "float64")
    assert select_backend(request).refusals["native"] == "it computes on a CPU, the tensors are on cuda"
    with pytest.raises(ValueError, match="native refuses: it has no deep_memory"):
        select_backend(request._replace(operation="deep_memory", device="cpu"), "native")


@pytest.mark.parametrize("threads", (2, 3))
def test_threads_change_no_bit(threads):
    problem = draw(700, batch=3, heads=3, key_width=16, value_width=70, dtype=torch.float32, resets=True)
    hopping = torch.rand(5, 6, 300)

    def computed() -> list[torch.Tensor]:
        diagonal = torch.randn(5, 6, 300, generator=torch.Generator().manual_seed(0), requires_grad=True)
        (y, theta), _ = causal_resolvent_apply(
            diagonal, hopping, hopping, 0.3 + 0.2j, diagonal[..., None].expand(-1, -1, -1, 8), backend="native"
        )
        (gradient,) = torch.autograd.grad(y.real.sum() + theta.imag.sum(), diagonal)
        return [*results(problem, lambda *x, **options: fast_weights(*x, backend="native", **options)), y, gradient]

    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = computed()
        torch.set_num_threads(threads)
        together = computed()
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_the_compiler_that_made_it_is_named():
    assert find_compiler() and library("float32") is library("float32") is not library("float64")
