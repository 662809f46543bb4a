"""What the backends offer, and how they are chosen."""

import subprocess
import sys
from contextlib import nullcontext, suppress

import pytest
import torch
from muse_torch_bk.options import NativeOptions, ReferenceOptions, TorchOptions
from muse_torch_bk.plugin import muse_kernel_backends
from torch.utils._python_dispatch import TorchDispatchMode

import muse_kernels
from muse_core.component import load
from muse_core.contracts import KernelRequest
from muse_core.errors import RecipeError
from muse_core.model.kernels import BoundKernels, ranked
from muse_core.testing.kernel_backends import PROBLEMS
from muse_kernels.refusals import NATIVE

OPTIONS = {"native": NativeOptions(), "torch": TorchOptions(), "reference": ReferenceOptions()}


@pytest.fixture
def backends():
    return [(row.name, load(row.implementation)(OPTIONS[row.name], None)) for row in muse_kernel_backends()]


def test_every_operation_exists(backends):
    for name, backend in backends:
        for operation, reference in backend.operations().items():
            assert load(reference).__name__ == operation, f"{name} {operation}"


def test_the_faster_comes_first(backends):
    assert [name for name, _ in ranked(reversed(backends))] == ["native", "torch", "reference"]


def test_all_compute_the_same(backends):
    diagonal = torch.randn(2, 9, dtype=torch.float64)
    theta = {}
    for item in backends:
        bound = BoundKernels([item], device="cpu", dtype="float64").bind("causal_resolvent_diagonal")
        theta[item[0]] = bound(diagonal, 1.0, 1.0, torch.tensor(0.5 + 0.3j, dtype=torch.complex128))[0]
    for name in ("native", "torch"):
        torch.testing.assert_close(theta[name], theta["reference"], rtol=0, atol=1e-12)
    assert theta["torch"].abs().min() > 1e-3


def test_a_process_group_is_refused_with_a_reason(backends):
    for name, backend in backends:
        request = KernelRequest("causal_resolvent_diagonal", "cpu", "float32", needs=frozenset({"group"}))
        assert "context parallelism" in backend.refuse(request), name
        assert backend.refuse(request._replace(needs=frozenset({"gradient", "resets"}))) is None, name
    with pytest.raises(RecipeError, match="torch.*context parallelism.*reference.*context parallelism"):
        BoundKernels(backends, device="cpu", dtype="float32").bind("fast_weights", needs=("group",))


def test_listing_imports_no_torch():
    code = "import sys, muse_torch_bk.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_one_request_in_two_packages():
    """The core may not import muse_kernels, nor the other way round: each defines what a layer asks for, alike."""
    assert KernelRequest._fields == muse_kernels.KernelRequest._fields
    assert KernelRequest._field_defaults == muse_kernels.KernelRequest._field_defaults


class Called(TorchDispatchMode):
    """The operators that were called, by name."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.names.add(function._schema.name)
        return function(*arguments, **(named or {}))

    def native(self):
        return any(name.startswith("muse_kernels::native") for name in self.names)


def single(value):
    """An argument in float32 or complex64."""
    if not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
        return value
    return value.to(torch.complex64 if value.is_complex() else torch.float32)


@pytest.mark.parametrize("operation", PROBLEMS)
def test_what_was_bound_on_a_cpu_is_not_native_elsewhere(operation, backends):
    """As in a layer that was built there and moved, to a device that every machine has: its tensors hold no numbers."""
    native = backends[0][1]
    for device in ("cuda", "meta", "mps"):
        assert native.refuse(KernelRequest(operation, device, "float32")) is not None, device
    bound = BoundKernels(ranked(backends), device="cpu", dtype="float32").bind(operation)
    problem = {name: single(x) for name, x in next(iter(PROBLEMS[operation](9).values())).items()}
    with Called() as here:
        bound(**problem)
    assert here.native() == (operation in NATIVE)
    # Operations that turn autocast off go as far as that: torch has no autocast for this device.
    guarded = operation in ("decayed_scores", "deep_memory", "fast_weights")
    autocast = suppress(RuntimeError) if guarded else nullcontext()
    with Called() as there, autocast:
        bound(**{name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in problem.items()})
    assert there.names and not there.native()
