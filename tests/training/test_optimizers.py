"""Optimisers follow roles; their state goes through a checkpoint by parameter name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muse_core.errors import RecipeError
from muse_core.recipe.schema import Train
from muse_core.testing.building import chosen
from muse_core.training.optimizers import Optimizers, make_optimizers


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(5, 4)
        self.inner = nn.Linear(4, 4)
        self.dynamics = nn.Module()
        self.dynamics.rate = nn.Parameter(torch.ones(4, 4))


def updated(model: Small, optimizers: Optimizers, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizers.step(0.5)


def everything(name: str) -> bool:
    return True


def test_matrices_and_embeddings_decay_and_nothing_else() -> None:
    model = Small()
    (adam,) = make_optimizers(model, Train(optimizer=chosen("optimizer", "adamw"), weight_decay=0.3), everything).parts
    decay = {id(p): group["weight_decay"] for group in adam.param_groups for p in group["params"]}
    assert decay[id(model.embedding.weight)] == decay[id(model.inner.weight)] == 0.3
    assert decay[id(model.inner.bias)] == decay[id(model.dynamics.rate)] == 0.0


def test_muon_takes_hidden_matrices_only() -> None:
    model = Small()
    muon, adam = make_optimizers(model, Train(optimizer=chosen("optimizer", "muon")), everything).parts
    assert [id(p) for group in muon.param_groups for p in group["params"]] == [id(model.inner.weight)]
    assert sum(len(group["params"]) for group in adam.param_groups) == 3


@pytest.mark.parametrize("optimizer", [chosen("optimizer", "adamw"), chosen("optimizer", "muon")])
def test_state_put_back_gives_the_same_next_update_to_the_last_bit(optimizer: object) -> None:
    train = Train(optimizer=optimizer)
    model = Small()
    first = make_optimizers(model, train, everything)
    updated(model, first, 0)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {name: value.clone() for name, value in first.state_dict().items()}
    updated(model, first, 1)
    other = Small()
    other.load_state_dict(weights)
    second = make_optimizers(other, train, everything)
    second.load_state_dict(moments)
    updated(other, second, 1)
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters()):
        assert torch.equal(a, b), name


def test_untrained_parameters_are_left_out() -> None:
    model = Small()
    train = Train(optimizer=chosen("optimizer", "adamw"))
    names = make_optimizers(model, train, lambda name: name.startswith("inner")).names
    assert set(names) == {"inner.weight", "inner.bias"}
    with pytest.raises(RecipeError, match="nothing to train"):
        make_optimizers(model, train, lambda name: False)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimisers_state_is_foreseen_to_the_byte(optimizer: str) -> None:
    import torch

    from muse_core.recipe import check_table
    from muse_core.training.optimizers import make_optimizers
    from muse_core.training.setup import set_up

    table = {
        "name": "a", "data": {"use": "state-of-the-union"}, "train": {"optimizer": optimizer, "device": "cpu"},
        "model": {"width": 16, "depth": 1, "block": ["attention", "feed-forward"]},
    }
    checked = check_table(table)
    model = set_up(checked.recipe, checked.registry).model
    optimizers = make_optimizers(model, checked.recipe.train, lambda name: True)
    foreseen = {key: (value.shape, value.dtype) for key, value in optimizers.expected_tensors().items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(1.0)
    assert {key: (value.shape, value.dtype) for key, value in optimizers.state_dict().items()} == foreseen
