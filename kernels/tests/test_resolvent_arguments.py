"""What the resolvent operations accept, and how they refuse."""

import os
import subprocess
import sys

import pytest
import torch

from muse_kernels import (
    KernelRequest,
    causal_resolvent_apply,
    causal_resolvent_diagonal,
    debug,
    resolvent_diagonal,
    select_backend,
)
from muse_kernels.testing.resolvent import draw

Z = 0.3 + 0.5j
INTERPRETED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter serves the CPU")


@pytest.mark.parametrize("backend", ("reference", "torch"))
def test_scalars_and_leading_dimensions_broadcast(backend):
    a = torch.randn(3, 1, 4, 6)
    l = torch.randn(5, 1, 1)
    z = torch.full((4, 1), Z)
    out = resolvent_diagonal(a, l, 1.0, z, backend=backend)
    assert out.shape == (3, 5, 4, 6) and out.dtype == torch.complex64
    one = resolvent_diagonal(a[2, 0, 1], l[4, 0, 0], 1.0, Z, backend=backend)
    torch.testing.assert_close(out[2, 4, 1], one)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
def test_halves_are_computed_in_single(dtype):
    a = torch.randn(2, 9).to(dtype)
    theta, final = causal_resolvent_diagonal(a, 1.0, 1.0, Z)
    assert theta.dtype == final.dtype == torch.complex64
    torch.testing.assert_close(theta, causal_resolvent_diagonal(a.float(), 1.0, 1.0, Z)[0])


def test_expanded_and_strided_inputs():
    a = torch.randn(4, 30, 2, dtype=torch.float64).transpose(1, 2)[::2, :, ::3]
    l = torch.randn(1, 2, 1, dtype=torch.complex128).expand(2, 2, 10)
    torch.testing.assert_close(
        resolvent_diagonal(a, l, l.conj(), Z),
        resolvent_diagonal(a.contiguous(), l.contiguous(), l.conj().resolve_conj().contiguous(), Z),
    )


@pytest.mark.parametrize("backend", ("reference", "torch"))
def test_empty_batch(backend):
    a = torch.randn(0, 5, requires_grad=True)
    (y, theta), final = causal_resolvent_apply(a, 1.0, 1.0, Z, torch.randn(0, 5, 3), backend=backend)
    assert y.shape == (0, 5, 3) and theta.shape == (0, 5) and final[0].shape == (0,) and final[1].shape == (0, 3)
    assert resolvent_diagonal(a, 1.0, 1.0, Z, backend=backend).shape == (0, 5)
    y.abs().sum().backward()
    assert a.grad.shape == (0, 5)


@pytest.mark.parametrize(
    "change, message",
    (
        ({"lower": torch.ones(4)}, r"lower must be broadcastable to \(..., N = 6\), got \(4,\)"),
        ({"upper": torch.ones(3, 6)}, r"upper must be with leading dimensions .* got \(3, 6\)"),
        ({"energy": torch.full((2, 6), Z)}, r"energy must be broadcastable to \(..., 1\), got \(2, 6\)"),
        ({"values": torch.ones(2, 5, 3)}, r"values must be \(..., N = 6, M\), got \(2, 5, 3\)"),
        ({"initial": torch.ones(2)}, r"initial must be the pair"),
        ({"initial": (torch.ones(2), torch.ones(2, 4))}, r"initial\[1\] must be broadcastable to \(2, 3\)"),
        ({"diagonal": torch.ones(2, 6, dtype=torch.int64)}, "diagonal must be floating or complex"),
        ({"diagonal": torch.ones(2, 0)}, r"diagonal must be a tensor \(..., N\) with N >= 1"),
        ({"lower": torch.ones(6, device="meta")}, "lower is on meta, diagonal on cpu"),
        ({"backend": "cuda"}, "backend must be auto, triton, native, torch, reference"),
        pytest.param(
            {"backend": "triton"},
            "triton refuses: it compiles for CUDA",
            marks=INTERPRETED,
        ),
    ),
)
def test_refusals_name_the_argument_and_the_shapes(change, message):
    arguments = {"diagonal": torch.ones(2, 6), "lower": 1.0, "upper": 1.0, "energy": Z, "values": torch.ones(2, 6, 3)}
    with pytest.raises(ValueError, match=message):
        causal_resolvent_apply(**(arguments | change))


def test_a_process_group_is_refused():
    with pytest.raises(NotImplementedError, match="context parallelism"):
        causal_resolvent_diagonal(torch.ones(3), 1.0, 1.0, Z, group=object())


def test_values_are_checked_in_debug_mode_only():
    a = torch.ones(3)
    resolvent_diagonal(a, 1.0, 1.0, 0.5 - 0.1j)
    with debug():
        with pytest.raises(ValueError, match="Im energy must be positive"):
            resolvent_diagonal(a, 1.0, 1.0, 0.5 - 0.1j)
        with pytest.raises(ValueError, match="diagonal has values that are not finite"):
            resolvent_diagonal(a / 0, 1.0, 1.0, Z)
    resolvent_diagonal(a, 1.0, 1.0, 0.5 - 0.1j)


@INTERPRETED
def test_auto_says_what_it_chose_and_why():
    choice = select_backend(KernelRequest("causal_resolvent_apply", "cpu", "float32"))
    assert choice.backend == "native" and "CUDA" in choice.refusals["triton"]
    whole = select_backend(KernelRequest("resolvent_diagonal", "cpu", "float32"))
    assert whole.backend == "torch" and whole.refusals["native"] == "it has no resolvent_diagonal"
    assert select_backend(KernelRequest("causal_resolvent_apply", "cuda", "float32")).backend == "triton"
    assert select_backend(KernelRequest("causal_resolvent_apply", "cuda", "float64")).backend == "torch"
    with pytest.raises(ValueError, match="unknown operation"):
        select_backend(KernelRequest("resolvent", "cpu", "float32"))
    with pytest.raises(ValueError, match="triton refuses.*torch refuses.*reference refuses"):
        select_backend(KernelRequest("causal_resolvent_apply", "cuda", "float32", needs=frozenset({"group"})))


def test_float64_inputs_of_another_kind_raise_the_precision():
    p = draw(5)
    assert p.full(resolvent_diagonal).dtype == torch.complex128
    single = resolvent_diagonal(p.diagonal.to(torch.complex64), 1.0, 1.0, torch.tensor(Z, dtype=torch.complex128))
    assert single.dtype == torch.complex64


def test_importing_the_package_leaves_the_compiler_alone():
    code = "import sys, muse_kernels; sys.exit('muse_kernels.triton' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
