"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_peers.options import (
    GatedDeltaNet2Options,
    GatedDeltaNetOptions,
    GlaOptions,
    KdaOptions,
    Mamba2Options,
    Mamba3Options,
    RgLruOptions,
    Rwkv7Options,
)


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component("rg-lru", options=RgLruOptions, implementation="muse_peers.rg_lru:RgLru")


@hookimpl
def muse_memory_layers() -> Iterable[Component]:
    yield Component(
        "gated-deltanet", options=GatedDeltaNetOptions, implementation="muse_peers.gated_deltanet:GatedDeltaNet"
    )
    yield Component(
        "gated-deltanet-2",
        options=GatedDeltaNet2Options,
        implementation="muse_peers.gated_deltanet_2:GatedDeltaNet2",
    )
    yield Component("gla", options=GlaOptions, implementation="muse_peers.gla:Gla")
    yield Component("kda", options=KdaOptions, implementation="muse_peers.kda:Kda")
    yield Component("mamba2", options=Mamba2Options, implementation="muse_peers.mamba2:Mamba2")
    yield Component("mamba3", options=Mamba3Options, implementation="muse_peers.mamba3:Mamba3")
    yield Component("rwkv7", options=Rwkv7Options, implementation="muse_peers.rwkv7:Rwkv7")
