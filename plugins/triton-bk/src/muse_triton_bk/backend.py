"""The backend ``triton`` of muse-kernels behind the core's contract."""

from __future__ import annotations

from typing import Any

from muse_core.contracts import KernelRequest
from muse_kernels.refusals import refuse_triton
from muse_kernels.request import OPERATIONS
from muse_triton_bk.options import TritonOptions


class Triton:
    """Serves first wherever its kernels run."""

    rank = 20

    def __init__(self, options: TritonOptions, context: Any):
        pass

    def operations(self) -> dict[str, str]:
        return {name: f"muse_kernels.triton:{name}" for name in OPERATIONS}

    def refuse(self, request: KernelRequest) -> str | None:
        return refuse_triton(request)
