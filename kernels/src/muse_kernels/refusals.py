"""What each backend cannot serve, answered without importing it.

Each function takes a request (`muse_kernels.KernelRequest`, or anything with its fields) and returns the reason in a
sentence, or None.
"""

import os
from importlib.util import find_spec

from .compiled import unavailable

_HAS_TRITON = find_spec("triton") is not None  # asked once: torch.compile does not trace the question
WIDEST = {
    "causal_convolution": {"span": 16},
    "decayed_scores": {"key": 128},
    "fast_weights": {"key": 128, "value": 512},
    "gated_norm": {"features": 8192},
    "short_convolution": {"key": 128, "span": 16},
    "trace_attention": {"key": 128, "value": 128},
}
"""What a Triton program holds at once, by operation and size."""
ONE_PROCESS = "context parallelism stands around a kernel, which takes no process group (group)"
"""Context parallelism needs of a kernel that it takes `initial`, and no process group of its own."""


def require_one_process(operation: str, group) -> None:
    """Raises NotImplementedError where a process group is given."""
    if group is not None:
        raise NotImplementedError(f"{operation}: {ONE_PROCESS}; pass group=None")


def deep_memory_sizes(sizes) -> str | None:
    """Why Triton's deep memory does not serve these sizes, or None."""
    if sizes.get("matrices", 3) != 3:
        return "its deep_memory is of gated memories"
    for name, served in (("key", (16, 32, 64)), ("hidden", (16, 32, 64, 128))):
        if name in sizes and sizes[name] not in served:
            return f"its deep_memory holds {name} {', '.join(map(str, served))} wide, not {sizes[name]}"
    return None


def refuse_reference(request) -> str | None:
    """The float64 reference serves all tokens of one process."""
    return ONE_PROCESS if "group" in request.needs else None


def refuse_torch(request) -> str | None:
    """The torch backend serves all tokens of one process."""
    return ONE_PROCESS if "group" in request.needs else None


NATIVE = ("causal_resolvent_apply", "causal_resolvent_diagonal", "fast_weights", "gated_norm", "short_convolution")
"""What there is in C of ``request.OPERATIONS``."""
NATIVE_ALONE = ("newton_schulz",)
"""What there is in C and nowhere else in this package."""


def refuse_native(request) -> str | None:
    """Native needs a CPU and a C compiler, which the first request of a precision calls; half precision is computed in
    float32."""
    if "group" in request.needs:
        return ONE_PROCESS
    if request.operation not in (*NATIVE, *NATIVE_ALONE):
        return f"it has no {request.operation}"
    if request.device != "cpu":
        return f"it computes on a CPU, the tensors are on {request.device}"
    return unavailable("float64" if request.dtype == "float64" else "float32")


def refuse_triton(request) -> str | None:
    """Triton needs a CUDA device, or its interpreter (TRITON_INTERPRET=1), and computes in float32."""
    if "group" in request.needs:
        return ONE_PROCESS
    if request.dtype == "float64":
        return "its kernels compute in float32"
    if request.operation == "deep_memory":
        if "double_backward" in request.needs:
            return "its deep_memory has no second derivatives"
        if reason := deep_memory_sizes(request.sizes):
            return reason
    for name, most in WIDEST.get(request.operation, {}).items():
        if request.sizes.get(name, 0) > most:
            return f"its {request.operation} holds {name} up to {most} wide, not {request.sizes[name]}"
    if request.device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it compiles for CUDA, the tensors are on {request.device}"
    if not _HAS_TRITON:
        return "triton is not installed"
    return None


REFUSALS = {
    "native": refuse_native, "reference": refuse_reference, "torch": refuse_torch, "triton": refuse_triton,
}
