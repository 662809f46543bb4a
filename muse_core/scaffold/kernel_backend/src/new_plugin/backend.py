"""What the backend serves, and what it refuses."""

from __future__ import annotations

from typing import Any

from muse_core.contracts import KernelRequest

from new_plugin.options import NewPluginOptions


class NewPlugin:
    """Asked before backends of lower rank and after those of higher; no two installed backends may have the same."""

    rank = 5

    def __init__(self, options: NewPluginOptions, context: Any):
        pass

    def operations(self) -> dict[str, str]:
        """operation → function, each with the signature of its namesake in muse_kernels without ``backend``."""
        return {"causal_resolvent_diagonal": "new_plugin.recursion:causal_resolvent_diagonal"}

    def refuse(self, request: KernelRequest) -> str | None:
        """Why a request cannot be served, in a sentence that follows the backend's name, or None."""
        if "group" in request.needs:
            return "computes on one process"
        if request.device != "cpu":
            return f"takes one token after another, for which {request.device} is too slow"
        return None
