"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_cvfp.options import (
    ContextFixedOptions,
    CvfpOptions,
    FixedPointOptions,
    GruOptions,
    SafetensorsOptions,
    TokenEmbeddingsOptions,
)


@hookimpl
def muse_models() -> Iterable[Component]:
    yield Component("cvfp", options=CvfpOptions, implementation="muse_cvfp.model:Cvfp")
    yield Component("gru", options=GruOptions, implementation="muse_cvfp.gru:Gru")


@hookimpl
def muse_initializers() -> Iterable[Component]:
    yield Component("safetensors", options=SafetensorsOptions, implementation="muse_cvfp.embeddings:Safetensors")


@hookimpl
def muse_stages() -> Iterable[Component]:
    yield Component(
        "token-embeddings", options=TokenEmbeddingsOptions, implementation="muse_cvfp.embeddings:TokenEmbeddings"
    )
    yield Component("fixed-point", options=FixedPointOptions, implementation="muse_cvfp.fixed_point:FixedPoint")
    yield Component("context-fixed", options=ContextFixedOptions, implementation="muse_cvfp.context_fixed:ContextFixed")
