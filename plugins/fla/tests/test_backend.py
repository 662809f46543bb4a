"""When fla-core serves, and when it stands back; on a GPU the conformance suite compares its results."""

import subprocess
import sys

import pytest
import torch
from muse_fla import backend as module
from muse_fla.fast_weights import fast_weights
from muse_fla.options import FlaOptions
from muse_fla.plugin import muse_kernel_backends
from packaging.version import Version

from muse_core.component import load
from muse_core.contracts import KernelRequest
from muse_core.errors import RecipeError
from muse_core.model.kernels import BoundKernels

ON_GPU = KernelRequest("fast_weights", "cuda", "bfloat16", {"key": 64, "value": 64}, frozenset())


@pytest.fixture
def backend(monkeypatch):
    """As where everything is installed, and no GPU is a Hopper."""
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setattr(module.metadata, "version", lambda name: "3.6.0" if name == "triton" else "0.6.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = muse_kernel_backends()
    return load(row.implementation)(FlaOptions(), None)


def test_serves_bfloat16_on_a_gpu_with_wide_heads(backend):
    wide = {"key": 256, "value": 256}
    assert backend.refuse(ON_GPU._replace(sizes=wide, needs=frozenset({"gradient"}))) is None


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"operation": "resolvent_diagonal"}, "fast weights only"),
        ({"device": "cpu"}, "tensors are on cpu"),
        ({"dtype": "float32"}, "tf32"),
        ({"sizes": {"key": 257, "value": 64}}, "up to 256 wide, not 257"),
        ({"needs": {"resets"}}, "resets"),
        ({"needs": {"group"}}, "group"),
        ({"needs": {"double_backward"}}, "second order"),
    ],
)
def test_refuses_with_a_reason(backend, change, reason):
    assert reason in backend.refuse(ON_GPU._replace(**change))


def test_says_what_is_not_installed(backend, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "einops" else name)
    assert "einops is not installed" in backend.refuse(ON_GPU)
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setattr(module.metadata, "version", lambda name: "0.3.2")
    assert "fla-core 0.3.2 is older than 0.4" in backend.refuse(ON_GPU)


@pytest.mark.parametrize("triton, refused", [("3.3.1", False), ("3.4.0", True), ("3.7.0", True), ("3.7.1", False)])
def test_gradients_follow_the_guard_of_fla_core(backend, monkeypatch, triton, refused):
    monkeypatch.setattr(module.metadata, "version", lambda name: triton if name == "triton" else "0.6.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    request = ON_GPU._replace(needs=frozenset({"gradient"}))
    assert bool(backend.refuse(request)) == refused
    assert backend.refuse(ON_GPU) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert backend.refuse(request) is None


def test_the_guard_is_still_that_of_the_installed_fla_core():
    env = pytest.importorskip("fla.utils.env")
    triton = Version(module.metadata.version("triton"))
    first, fixed = module.WRONG_ON_HOPPER
    assert (triton >= first) == env.TRITON_ABOVE_3_4_0 and (triton >= fixed) == env.TRITON_ABOVE_3_7_1


def test_the_listing_says_why_another_backend_was_taken(backend):
    bound = BoundKernels([("fla", backend)], device="cuda", dtype="bfloat16")
    with pytest.raises(RecipeError, match="fast_weights on cuda in bfloat16: fla .*second order"):
        bound.bind("fast_weights", needs=("double_backward",))


@pytest.mark.parametrize("read", ("after", "before"))
@pytest.mark.parametrize("rule", ("hebbian", "delta"))
def test_arguments_reach_the_rules_as_the_recursion_needs_them(monkeypatch, rule, read):
    """The rules of fla-core written out in torch take their place: what remains is ours."""
    from muse_fla import fast_weights as ours

    from muse_kernels.reference import fast_weights as reference
    from muse_kernels.testing.fast_weights import draw

    def recursion(query, key, value, log_decay, rate, initial):
        return reference(query, key, value, log_decay, rate, rule=rule, initial=initial)

    monkeypatch.setitem(ours.RULES, rule, recursion)
    problem = draw(6, dtype=torch.float32)
    expected = problem.run(reference, rule=rule, read=read)
    for got, want in zip(problem.run(fast_weights, rule=rule, read=read), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_resets_are_refused_when_called_directly():
    from muse_kernels.testing.fast_weights import draw

    with pytest.raises(ValueError, match="no resets"):
        draw(4, resets=True, dtype=torch.float32).run(fast_weights)


def test_listing_imports_neither_torch_nor_fla():
    code = "import sys, muse_fla.plugin; sys.exit(bool({'torch', 'triton', 'fla'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
