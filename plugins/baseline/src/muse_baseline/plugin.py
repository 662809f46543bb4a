"""Registers the baseline layers and router."""

from __future__ import annotations

from collections.abc import Iterable

from muse_baseline.options import AttentionOptions, ConvolutionOptions, FeedForwardOptions, MlpRouterOptions
from muse_core.component import Component
from muse_core.hookspecs import hookimpl


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component("attention", options=AttentionOptions, implementation="muse_baseline.attention:Attention")
    yield Component("convolution", options=ConvolutionOptions, implementation="muse_baseline.convolution:Convolution")
    yield Component("feed-forward", options=FeedForwardOptions, implementation="muse_baseline.feed_forward:FeedForward")


@hookimpl
def muse_routers() -> Iterable[Component]:
    yield Component("mlp", options=MlpRouterOptions, implementation="muse_baseline.router:MlpRouter")
