"""Registers the backends."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_torch_bk.options import NativeOptions, ReferenceOptions, TorchOptions


@hookimpl
def muse_kernel_backends() -> Iterable[Component]:
    yield Component("native", options=NativeOptions, implementation="muse_torch_bk.backends:Native")
    yield Component("torch", options=TorchOptions, implementation="muse_torch_bk.backends:Torch")
    yield Component("reference", options=ReferenceOptions, implementation="muse_torch_bk.backends:Reference")
