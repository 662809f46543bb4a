"""What the backend offers, and when it stands back."""

import subprocess
import sys

import pytest
from muse_triton_bk.options import TritonOptions
from muse_triton_bk.plugin import muse_kernel_backends

from muse_core.component import load
from muse_core.contracts import KernelRequest
from muse_core.errors import RecipeError
from muse_core.model.kernels import BoundKernels

ON_GPU = KernelRequest("causal_resolvent_diagonal", "cuda", "float32")


@pytest.fixture
def backend():
    (row,) = muse_kernel_backends()
    return load(row.implementation)(TritonOptions(), None)


def test_every_operation_exists(backend):
    pytest.importorskip("triton")
    for operation, reference in backend.operations().items():
        assert load(reference).__name__ == operation


def test_serves_a_gpu_in_single_precision(backend):
    pytest.importorskip("triton")
    assert backend.refuse(ON_GPU) is None


@pytest.mark.parametrize(
    "change, reason",
    [({"device": "cpu"}, "tensors are on cpu"), ({"dtype": "float64"}, "float32"), ({"needs": {"group"}}, "group")],
)
def test_refuses_with_a_reason(backend, monkeypatch, change, reason):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert reason in backend.refuse(ON_GPU._replace(**change))


def test_a_refusal_names_the_backend(backend, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RecipeError, match="on cpu in float32: triton.* compiles for CUDA"):
        BoundKernels([("triton", backend)], device="cpu", dtype="float32").bind("causal_resolvent_diagonal")


def test_the_interpreter_serves_a_machine_without_gpu(backend, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.refuse(ON_GPU._replace(device="cpu")) is None


def test_listing_imports_neither_torch_nor_triton():
    code = "import sys, muse_triton_bk.plugin; sys.exit(bool({'torch', 'triton'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
