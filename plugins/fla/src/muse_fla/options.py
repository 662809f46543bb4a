"""Options of the backend. Imports no torch."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class FlaOptions:
    """The fast weights of fla-core, on NVIDIA GPUs in bfloat16; optional, and not installed with MUSE."""
