"""State pairs: what goes into each linear map on training text and what comes out, as second moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from muse_core.contracts import Batch
from muse_core.data.batches import micro_batches, to_device
from muse_core.evaluation.held_out import undisturbed
from muse_core.training.shards import whole
from muse_koopman.maps import CompressedLinear, replace

HELD_OUT = 5
"""One piece of text in so many is kept from the fit."""


@attrs.define
class Moments:
    """Sums over tokens of products of states, in float64."""

    inputs: Tensor
    """(n, n): Σ x xᵀ."""
    pairs: Tensor
    """(m, n): Σ y xᵀ with y the map's output without its bias."""
    outputs: float = 0.0
    """Σ ‖y‖²."""
    count: int = 0

    @classmethod
    def empty(cls, outputs: int, inputs: int, device: torch.device) -> Moments:
        zeros = {"dtype": torch.float64, "device": device}
        return cls(torch.zeros(inputs, inputs, **zeros), torch.zeros(outputs, inputs, **zeros))

    def add(self, x: Tensor, y: Tensor) -> None:
        """x (…, n), y (…, m)."""
        x, y = x.detach().flatten(0, -2).double(), y.detach().flatten(0, -2).double()
        self.inputs += x.T @ x
        self.pairs += y.T @ x
        self.outputs += float(y.square().sum())
        self.count += len(x)


class Recorder(nn.Module):
    """Stands for a map while states are read, and adds them up."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        shape = (inner.out_features, inner.in_features)
        self.fit, self.check = (Moments.empty(*shape, device=inner.weight.device) for _ in range(2))
        self.now = self.fit

    @property
    def weight(self) -> Tensor:
        """For a layer that reads the matrix itself: then no states are seen. All of it, where ranks have parts."""
        return whole(self.inner.weight)

    @property
    def bias(self) -> Tensor | None:
        return None if self.inner.bias is None else whole(self.inner.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        self.now.add(x, y if self.bias is None else y - self.bias)
        return y


def candidates(model: nn.Module, least: int) -> dict[str, nn.Module]:
    """The linear maps that may be stored smaller, by full name: matrices in fp32, or factors of such, with at least
    ``least`` rows and columns, outside the parts called dynamics, which stay precise."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        plain = type(module) is nn.Linear or (isinstance(module, CompressedLinear) and trainable(module))
        if plain and "dynamics" not in name.split(".") and min(module.in_features, module.out_features) >= least:
            found[name] = module
    return found


def trainable(module: CompressedLinear) -> bool:
    """Whether it is kept as matrices of parameters."""
    parts = [module.left] if module.right is None else [module.left, module.right]
    return all(hasattr(part, "weight") for part in parts)


def recorded(setup: Any, names: list[str], tokens: int) -> dict[str, Recorder]:
    """Read about ``tokens`` training tokens in the run's precision; the model is as before afterwards.

    A map that its layer does not call has a count of 0.
    """
    model = setup.model
    recorders = {name: Recorder(model.get_submodule(name)) for name in names}
    try:
        for name, recorder in recorders.items():
            replace(model, name, recorder)
        with undisturbed(model), setup.precision():
            for number, batch in enumerate(pieces(setup, tokens)):
                for recorder in recorders.values():
                    recorder.now = recorder.check if number % HELD_OUT == HELD_OUT - 1 else recorder.fit
                model(batch.inputs, None, batch.tokens)
    finally:
        for name, recorder in recorders.items():
            replace(model, name, recorder.inner)
    return recorders


def pieces(setup: Any, tokens: int) -> Iterator[Batch]:
    """Training rows by twos, at least ``HELD_OUT`` times, until there are as many tokens."""
    data, seen, number = setup.training_data(), 0, 0
    for step in range(tokens):
        for piece in micro_batches(data.batch(step), 2):
            if seen >= tokens and number >= HELD_OUT:
                return
            yield to_device(piece, setup.precision.device)
            seen, number = seen + piece.inputs.numel(), number + 1
