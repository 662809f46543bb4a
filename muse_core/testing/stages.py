"""The conformance suite of stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from muse_core.contracts import Batch, ModelOutput, Result, State, Tokens
from muse_core.data.batches import rows
from muse_core.errors import RecipeError
from muse_core.model.seeding import set_seed
from muse_core.testing.cases import Case
from muse_core.testing.sequences import make_tokens
from muse_core.testing.suite import Suite

VOCABULARY, WIDTH = 11, 8


class TokenTable(nn.Module):
    """The smallest causal model: the next token by the present one."""

    vocabulary_size = VOCABULARY

    def __init__(self) -> None:
        super().__init__()
        set_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, inputs: torch.Tensor, state: State = None, tokens: Tokens | None = None) -> ModelOutput:
        hidden = inputs if inputs.is_floating_point() else self.embedding(inputs)
        return ModelOutput(hidden, {}, {"own": 0.1 * hidden.square().sum()}, {"own_max": hidden.detach().max()})

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.embedding(ids)
        return embedded

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(hidden)
        return scores


class StageSuite(Suite):
    """An objective for the one loop; see ``contracts.Stage``."""

    kind = "stage"

    def batch(self) -> Batch:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(VOCABULARY, (3, 9), generator=generator)
        loss_mask = torch.ones(3, 8, dtype=torch.bool)
        loss_mask[0, 5:] = False
        return Batch(ids[:, :-1], ids[:, 1:], loss_mask, make_tokens(3, 8))

    def objective(self, stage: Any, model: TokenTable) -> Any:
        """Of a model that has nothing but tokens; a stage that refuses it needs a suite beside this one."""
        try:
            return stage.objective(model, None)
        except RecipeError as refusal:
            pytest.skip(f"refused: {refusal}")

    def test_says_which_parameters_train(self, case: Case) -> None:
        stage = self.build(case)
        for name, _ in TokenTable().named_parameters():
            trains = stage.trainable(name)
            assert trains in (True, False), f"trainable({name!r}) gave {trains!r}, neither True nor False"

    def test_the_objective_is_a_sum_over_counted_tokens(self, case: Case) -> None:
        stage, model = self.build(case), TokenTable()
        objective = self.objective(stage, model)
        if objective is None:
            pytest.skip("the stage does not train")
        batch = self.batch()
        result = objective(model, batch, None)
        assert isinstance(result, Result), f"the objective returned {type(result).__name__}, not contracts.Result"
        assert result.total.shape == () and torch.isfinite(result.total), "the total is not a finite scalar"
        for name, value in (*result.losses.items(), *result.metrics.items()):
            assert value.shape == () and not value.requires_grad, f"{name} is not a detached scalar"
        parts = sum(objective(model, rows(batch, row, row + 1), None).total for row in range(3))
        assert abs(parts - result.total) <= 1e-4 * abs(result.total), "micro-batches do not add up to the batch"
        gradients = torch.autograd.grad(result.total, list(model.parameters()), allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in gradients), "no parameter has a gradient"

    def test_the_objective_has_a_state_dict(self, case: Case) -> None:
        objective = self.objective(self.build(case), TokenTable())
        if objective is None:
            pytest.skip("the stage does not train")
        objective.load_state_dict(objective.state_dict())
