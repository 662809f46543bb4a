"""The backends ``native``, ``torch`` and ``reference`` of muse-kernels behind the core's contract."""

from __future__ import annotations

from typing import Any

from muse_core.contracts import KernelRequest
from muse_kernels.refusals import NATIVE, NATIVE_ALONE, refuse_native, refuse_reference, refuse_torch
from muse_kernels.request import OPERATIONS
from muse_torch_bk.options import NativeOptions, ReferenceOptions, TorchOptions


class Native:
    """Serves its operations on a CPU before torch does, where there is a C compiler."""

    rank = 15

    def __init__(self, options: NativeOptions, context: Any):
        pass

    def operations(self) -> dict[str, str]:
        return {name: f"muse_kernels.native:{name}" for name in (*NATIVE, *NATIVE_ALONE)}

    def refuse(self, request: KernelRequest) -> str | None:
        return refuse_native(request)


class Torch:
    """Serves where no compiled backend does."""

    rank = 10

    def __init__(self, options: TorchOptions, context: Any):
        pass

    def operations(self) -> dict[str, str]:
        return {name: f"muse_kernels.torch:{name}" for name in OPERATIONS}

    def refuse(self, request: KernelRequest) -> str | None:
        return refuse_torch(request)


class Reference:
    """Serves when asked for by name, or where nothing else is installed."""

    rank = 0

    def __init__(self, options: ReferenceOptions, context: Any):
        pass

    def operations(self) -> dict[str, str]:
        return {name: f"muse_kernels.reference:{name}" for name in OPERATIONS}

    def refuse(self, request: KernelRequest) -> str | None:
        return refuse_reference(request)
