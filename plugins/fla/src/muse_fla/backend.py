"""The backend ``fla`` behind the core's contract: what it serves, and why not the rest."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import Any

from packaging.version import Version

from muse_core.contracts import KernelRequest
from muse_fla.options import FlaOptions

OLDEST = Version("0.4")
WIDEST = 256
WRONG_ON_HOPPER = (Version("3.4"), Version("3.7.1"))
"""Triton from the first to before the second compiles the gated backward wrongly there; fla-core refuses to run it."""


class Fla:
    """Serves behind triton, before torch: what it alone can are heads wider than triton's."""

    rank = 15

    def __init__(self, options: FlaOptions, context: Any):
        pass

    def operations(self) -> dict[str, str]:
        return {"fast_weights": "muse_fla.fast_weights:fast_weights"}

    def refuse(self, request: KernelRequest) -> str | None:
        """A reason in a sentence, or None. Imports torch only where a GPU's generation decides."""
        if request.operation not in self.operations():
            return "has fast weights only"
        if request.device != "cuda":
            return f"fla-core compiles for CUDA, the tensors are on {request.device}"
        if request.dtype != "bfloat16":
            return f"serves bfloat16, not {request.dtype}: fla-core rounds products of float32 to tf32"
        widest = max((0, *request.sizes.values()))
        if widest > WIDEST:
            return f"fla-core holds heads up to {WIDEST} wide, not {widest}"
        for need, reason in REFUSED_NEEDS.items():
            if need in request.needs:
                return reason
        return missing() or (wrong_gradients() if "gradient" in request.needs else None)


REFUSED_NEEDS = {
    "group": "context parallelism stands around a kernel, which takes no process group (group)",
    "resets": "fla-core takes resets as lengths on the host, which would wait for the device",
    "double_backward": "fla-core has no derivatives of second order",
}


def missing() -> str | None:
    """What is not installed, or too old."""
    for module, distribution in (("fla", "fla-core"), ("einops", "einops"), ("triton", "triton")):
        if find_spec(module) is None:
            return f"{distribution} is not installed; pip install 'muse-fla[fla]'"
    try:
        found = metadata.version("fla-core")
    except metadata.PackageNotFoundError:
        return "the module fla is there but not from fla-core; pip install 'muse-fla[fla]'"
    if Version(found) < OLDEST:
        return f"fla-core {found} is older than {OLDEST}; pip install --upgrade fla-core"
    return None


def wrong_gradients() -> str | None:
    """Whether this GPU and this Triton are the pair whose gated backward fla-core refuses."""
    import torch

    triton = Version(metadata.version("triton"))
    first, fixed = WRONG_ON_HOPPER
    if not first <= triton < fixed or not torch.cuda.is_available():
        return None
    if torch.cuda.get_device_capability()[0] != 9:
        return None
    return f"fla-core refuses gradients on Hopper under Triton {triton}, before {fixed}: they would be wrong"
