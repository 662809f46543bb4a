"""The layer suite fails layers that see what they may not on one path only, in words about causality."""

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
class Options:
    """Publishes what it computes."""

    def provides(self, width: int) -> dict[str, tuple[int, ...]]:
        return {"seen": (width,)}


def later(x: Tensor, by: int = 1) -> Tensor:
    """The token ``by`` places later, zero where there is none."""
    return torch.cat([x[:, by:], torch.zeros_like(x[:, :by])], 1)[:, : x.shape[1]]


class Causal(nn.Module):
    """A causal layer, with ``leak`` and ``told`` for the wrong ones."""

    def __init__(self, options: Any, context: Any):
        super().__init__()
        self.linear = nn.Linear(context.width, context.width, bias=False)
        self.publish = context.publish

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        update = self.linear(x) + self.leak(x, state, tokens)
        return LayerOutput(update, {"last": x[:, -1]}, {"seen": self.told(x)} if "seen" in self.publish else {})

    def leak(self, x: Tensor, state: Any, tokens: Tokens) -> Tensor:
        return torch.zeros_like(x)

    def told(self, x: Tensor) -> Tensor:
        return x.tanh()


def marks(tokens: Tokens) -> bool:
    return tokens.resets is not None and bool(tokens.resets.any())


def dropped(layer: Any, x: Tensor) -> Tensor:
    """Keeps more of a token where the next is large."""
    keep = 0.5 + 0.4 * torch.tanh(later(x)[..., :1])
    return x * (torch.rand(x.shape[:2])[..., None] < keep) if layer.training else torch.zeros_like(x)


LEAKS: dict[str, Callable[..., Tensor]] = {
    "NextToken": lambda layer, x, state, tokens: later(x),
    "WithResets": lambda layer, x, state, tokens: later(x) * (tokens.resets is not None),
    "WithoutResets": lambda layer, x, state, tokens: later(x) * (tokens.resets is None),
    "WithAStart": lambda layer, x, state, tokens: later(x) * marks(tokens),
    "InTraining": lambda layer, x, state, tokens: later(x) * layer.training,
    "InTrainingWithAStart": lambda layer, x, state, tokens: later(x) * (layer.training and marks(tokens)),
    "InTrainingWithoutGradient": lambda layer, x, state, tokens: later(x).detach() * layer.training,
    "WithGradients": lambda layer, x, state, tokens: later(x) * torch.is_grad_enabled(),
    "WithoutGradients": lambda layer, x, state, tokens: later(x) * (not torch.is_grad_enabled()),
    "FarAhead": lambda layer, x, state, tokens: later(x, 70),
    "BeyondTheSecondPeriod": lambda layer, x, state, tokens: later(x) * (torch.arange(x.shape[1])[:, None] >= 16),
    "BatchStatistics": lambda layer, x, state, tokens: (x - x.mean((0, 1), keepdim=True)) * layer.training,
    "NormalisedOverTime": lambda layer, x, state, tokens: x / (1 + x.std(1, keepdim=True)),
    "OneValue": lambda layer, x, state, tokens: torch.where(later(x)[..., :1] > 1.0, later(x), 0.0),
    "LastToken": lambda layer, x, state, tokens: x[:, -1:].expand_as(x),
    "AMillionth": lambda layer, x, state, tokens: 1e-6 * later(x),
    "WithState": lambda layer, x, state, tokens: later(x) * (state is not None),
    "AtOneFarPlace": lambda layer, x, state, tokens: x[:, 64:65].mean(1, keepdim=True).nan_to_num().expand_as(x),
    "FarAheadWithAStart": lambda layer, x, state, tokens: later(x) * (marks(tokens) and x.shape[1] > 64),
    "FarAheadWithState": lambda layer, x, state, tokens: later(x) * (state is not None and x.shape[1] > 64),
    "ThroughDropout": lambda layer, x, state, tokens: dropped(layer, x),
    "AnotherRow": lambda layer, x, state, tokens: x.roll(1, 0),
}
for name, leak in LEAKS.items():
    globals()[name] = type(name, (Causal,), {"leak": leak, "__module__": __name__, "__qualname__": name})


class ThroughASignal(Causal):
    def told(self, x: Tensor) -> Tensor:
        return x.tanh() + later(x)


CHECKS = (
    "test_a_large_change_reaches_no_earlier_token_and_no_other_row",
    "test_a_large_change_far_ahead_reaches_no_earlier_token",
    "test_a_change_of_all_that_follows_reaches_no_earlier_token",
    "test_gradients_of_earlier_outputs_are_exactly_zero",
)


@pytest.mark.parametrize("name", [*LEAKS, "ThroughASignal"])
def test_every_leak_fails_in_words_about_causality(complaint: Callable[..., str | None], name: str) -> None:
    said = [complaint(LayerSuite, globals()[name], Options, check) for check in CHECKS]
    heard = [one for one in said if one is not None]
    assert heard and all(one.startswith("AssertionError: not causal: ") for one in heard), said


def test_a_causal_layer_passes(complaint: Callable[..., str | None]) -> None:
    assert [complaint(LayerSuite, Causal, Options, check) for check in CHECKS] == [None] * len(CHECKS)
