"""The suites say of a layer that gives NaN that it is not finite, and not that it is not causal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_core.contracts import LayerOutput, ModelOutput, Tokens
from muse_core.testing.layers import LayerSuite
from muse_core.testing.models import ModelSuite
from tests.conformance.test_leaky_layers import CHECKS, Causal, Options


class DividesByThePosition(Causal):
    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        step = super().forward(x, state, signals, tokens)
        return step._replace(update=step.update / (tokens.positions > 0)[..., None].to(x) + 0.0 * step.update.log())


class RootOfNothing(Causal):
    """Its outputs are finite numbers and its gradients are not."""

    def leak(self, x: Tensor, state: Any, tokens: Tokens) -> Tensor:
        return (0.0 * x).square().sum(-1, keepdim=True).sqrt()


NO_CHANGE = "test_a_large_change_does_reach_its_own_token"


@pytest.mark.parametrize("check", [*CHECKS, NO_CHANGE])
def test_a_layer_that_gives_no_numbers_is_told_so(complaint: Callable[..., str | None], check: str) -> None:
    said = complaint(LayerSuite, DividesByThePosition, Options, check)
    assert said is not None and said.splitlines()[0] == "AssertionError: the update is not finite, first at token 0"


def test_gradients_that_are_no_numbers_are_told_so(complaint: Callable[..., str | None]) -> None:
    said = complaint(LayerSuite, RootOfNothing, Options, "test_gradients_of_earlier_outputs_are_exactly_zero")
    assert said is not None and said.startswith("AssertionError: the gradient of outputs before token 7 is not finite")
    assert complaint(LayerSuite, RootOfNothing, Options, CHECKS[0]) is None


def test_documents_that_give_no_numbers_are_told_so(complaint: Callable[..., str | None]) -> None:
    said = complaint(LayerSuite, DividesByThePosition, Options, "test_documents_are_separate")
    assert said is not None and "row 0: what it is compared with is not finite, first at token 0" in said, said


class Model(torch.nn.Module):
    """A model whose hidden states are NaN at the third token."""

    def __init__(self, options: Any, context: Any):
        super().__init__()
        self.vocabulary_size = context.vocabulary_size
        self.table = torch.nn.Embedding(self.vocabulary_size, 8, dtype=torch.float64)

    def embed(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def forward(self, inputs: Tensor, state: Any = None, tokens: Any = None) -> ModelOutput:
        hidden = inputs if inputs.is_floating_point() else self.embed(inputs)
        third = torch.arange(hidden.shape[1])[:, None] == 2
        return ModelOutput(torch.where(third, torch.nan, hidden), None, {}, {})

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.table.weight.T


@pytest.mark.parametrize(
    "check", ["test_later_tokens_and_other_rows_do_not_matter", "test_gradients_of_earlier_logits_are_exactly_zero"]
)
def test_a_model_that_gives_no_numbers_is_told_so(complaint: Callable[..., str | None], check: str) -> None:
    said = complaint(ModelSuite, Model, Options, check)
    assert said is not None and said.startswith("AssertionError: logits: a value is not finite, first at token 2"), said
