"""Sees what the layers and routers of a model return."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from muse_core.contracts import LayerOutput, Routing


@contextmanager
def recording(
    model: nn.Module, record: Callable[[str, LayerOutput | Routing, tuple[Any, ...]], None]
) -> Iterator[None]:
    """Calls ``record`` with the full name of each layer and router, what it returned and the arguments of its call (x
    first, tokens last), as long as it lasts."""

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, LayerOutput | Routing):
                record(name, output, inputs)

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_of(output: LayerOutput | Routing) -> dict[str, Tensor]:
    """By name, what others read of it: a layer's update and signals, or a router's logits."""
    if isinstance(output, Routing):
        return {"logits": output.logits}
    return {"update": output.update} | {f"signal {name}": value for name, value in output.signals.items()}
