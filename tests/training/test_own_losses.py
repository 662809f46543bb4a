"""A layer's own loss weighs the same per token whatever part of the labels counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_core.contracts import Batch, ModelOutput, Tokens
from muse_core.metrics.accumulator import MetricAccumulator
from muse_core.metrics.jsonl import read_rows
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


def test_losses_of_experts_and_gates_weigh_the_same_in_a_task_as_in_text(
    table: Callable[..., dict[str, Any]], go: Callable[..., Any], tmp_path: Path
) -> None:
    """F9 as it was met: 2 pairs in 64 tokens made the balance of experts 18 times, the polarisation of gates 32 times
    too heavy."""
    block = [
        {"use": "fast-weights", "heads": 2},
        {"use": "polarisation", "start": 1.0, "end": 1.0},
        {"use": "experts", "experts": 4, "router": {"use": "mlp", "top_k": 1}, "balance": 0.01},
    ]
    found = {}
    for name, data in (("text", None), ("task", {"use": "mqar", "pairs": 2, "vocabulary": 64})):
        train = {"steps": 2, "batch_size": 8, "micro_batch": 8, "sequence_length": 64}
        recipe = table(model={"width": 32, "depth": 1, "block": block}, train=train)
        recipe["data"] = data or recipe["data"]
        go(recipe, name)
        row = next(row for row in read_rows(tmp_path / name / "metrics.jsonl") if row["event"] == "train")
        found[name] = {key: value for key, value in row.items() if key.endswith(("balance", "polarisation"))}
    assert found["text"].keys() == found["task"].keys() and len(found["text"]) == 2, found
    for key, value in found["text"].items():
        weight = 0.01 if key.endswith("balance") else 1.0
        assert 0 < value < 2 * weight and found["task"][key] == pytest.approx(value, rel=0.5), found
