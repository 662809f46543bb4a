"""Sees what the layers and routers of a model return."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from muse_core.contracts import LayerOutput, Routing, Tokens


@contextmanager
def recording(model: nn.Module, record: Callable[[str, LayerOutput | Routing, Tokens], None]) -> Iterator[None]:
    """Calls ``record`` with the full name of each layer and router, what it returned and about which tokens, as long as
    it lasts."""

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, LayerOutput | Routing):
                record(name, output, inputs[-1])

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
