"""Registers the backend."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_triton_bk.options import TritonOptions


@hookimpl
def muse_kernel_backends() -> Iterable[Component]:
    yield Component("triton", options=TritonOptions, implementation="muse_triton_bk.backend:Triton")
