"""A layer's own loss weighs the same per token whatever part of the labels counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from muse_core.contracts import Batch, ModelOutput, Tokens
from muse_core.metrics.accumulator import MetricAccumulator
from muse_core.training.objectives import NextToken

WEIGHT = 0.01


class Model:
    """One own loss: ``WEIGHT`` per valid token."""

    vocabulary_size = 5

    def __call__(self, inputs: Tensor, state: object, tokens: Tokens) -> ModelOutput:
        valid = inputs.numel() if tokens.valid is None else int(tokens.valid.sum())
        return ModelOutput(torch.zeros(*inputs.shape, 3), {}, {"own": torch.tensor(WEIGHT * valid)}, {})

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.zeros(*hidden.shape[:-1], self.vocabulary_size)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("counting", [64, 8, 2])
def test_weight_per_token_does_not_depend_on_how_many_labels_count(counting: int, padded: bool) -> None:
    """F9: 2 counted of 64 tokens made an own loss 32 times too heavy."""
    ids, place = torch.zeros(3, 64, dtype=torch.long), torch.arange(64).expand(3, 64)
    valid = place < 48 if padded else None
    loss_mask = (place < counting) & (True if valid is None else valid)
    batch = Batch(ids, ids, loss_mask, Tokens(positions=place, valid=valid))
    result = NextToken()(Model(), batch, None)
    targets = int(loss_mask.sum())
    entropy = torch.tensor(5.0).log().item()
    assert float(result.total) / targets == pytest.approx(entropy + WEIGHT, rel=1e-5)
    accumulator = MetricAccumulator()
    accumulator.add_result(result, loss_mask.sum())
    assert accumulator.read()["own"] == pytest.approx(WEIGHT, rel=1e-5)
