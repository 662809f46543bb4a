"""Registers the layer."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_trace_attention.options import TraceAttentionOptions


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component(
        "trace-attention",
        options=TraceAttentionOptions,
        implementation="muse_trace_attention.layer:TraceAttention",
    )
