"""The layer suite catches what was found in layers of other libraries (findings/)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, Tokens
from muse_core.testing.layers import LayerSuite


@attrs.frozen(kw_only=True)
class NoOptions:
    """Nothing to choose."""


class Right(nn.Module):
    """Turns features by the token's position and scales them."""

    def __init__(self, options: Any, context: Any):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, context.width))
        self.linear = nn.Linear(context.width, context.width, bias=False)

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        y = self.linear(x)
        angles = self.counted(tokens.positions[..., None], y)
        return LayerOutput(y * (angles.cos() * self.scale()).to(y.dtype), None)

    def counted(self, positions: Tensor, y: Tensor) -> Tensor:
        return positions.to(torch.promote_types(y.dtype, torch.float32))

    def scale(self) -> Tensor:
        return self.gain


class CountsPositionsInTheStreamsDtype(Right):
    """As yet-another-retnet 0.5.1 does."""

    def counted(self, positions: Tensor, y: Tensor) -> Tensor:
        return positions.to(y.dtype).to(torch.promote_types(y.dtype, torch.float32))


class ReplacesItsParameter(Right):
    """As aft-pytorch 0.2.2 does: the gradient reaches a parameter, but none that an optimizer holds."""

    def scale(self) -> Tensor:
        self.gain = nn.Parameter(self.gain.detach().clamp(-4, 4))
        return self.gain


class DetachesItsParameter(Right):
    """As compressive-transformer-pytorch 0.4.0 does: after the first call the weight is never trained again."""

    def scale(self) -> Tensor:
        self.gain.detach_()
        return self.gain


FAULTS = [
    (CountsPositionsInTheStreamsDtype, "test_bf16_autocast_stays_near_fp32", "update drifts"),
    (ReplacesItsParameter, "test_a_call_keeps_its_parameters", "a call replaces, adds or drops gain"),
    (DetachesItsParameter, "test_a_call_keeps_its_parameters", "a call changes requires_grad of gain"),
]


@pytest.mark.parametrize(("wrong", "test", "words"), FAULTS, ids=[wrong.__name__ for wrong, _, _ in FAULTS])
def test_is_caught(complaint: Callable[..., str | None], wrong: type, test: str, words: str) -> None:
    assert words in str(complaint(LayerSuite, wrong, NoOptions, test))
    assert complaint(LayerSuite, Right, NoOptions, test) is None
