"""Options of the backend. Imports no torch."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class TritonOptions:
    """Kernels compiled by Triton for NVIDIA GPUs; with TRITON_INTERPRET=1 interpreted, slowly, on any machine."""
