"""Optimisers follow roles; their state goes through a checkpoint by parameter name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muse_core.errors import PluginError, RecipeError
from muse_core.recipe.schema import Train
from muse_core.testing.building import chosen
from muse_core.training import update_rules
from muse_core.training.optimizers import Optimizers, make_optimizers
from muse_core.training.update_rules import newton_schulz


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


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_three_updates_are_those_of_the_papers_in_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each at its own share of the peak rate. Adam: m, v ← β m + (1 − β) g, … with the bias corrected; Muon by the
    momentum of Nesterov, of a matrix that is twice as high as wide."""
    monkeypatch.setattr(update_rules, "computes_bf16", lambda device: False)
    model = Small().double()
    model.inner.weight = nn.Parameter(torch.randn(8, 4, dtype=torch.float64))
    options = {"beta1": 0.8, "beta2": 0.97, "epsilon": 1e-3} | ({} if name == "adamw" else {"learning_rate": 0.02})
    use = chosen("optimizer", name, **options)
    train = Train(optimizer=use, learning_rate=0.01, weight_decay=0.3)
    optimizers = make_optimizers(model, train, everything)
    due = {one: value.detach().clone() for one, value in model.named_parameters()}
    first, second = ({one: torch.zeros_like(value) for one, value in due.items()} for _ in range(2))
    for number, factor in enumerate((0.5, 1.0, 0.25), 1):
        generator = torch.Generator().manual_seed(number)
        for one, parameter in model.named_parameters():
            gradient = parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name == "muon" and one == "inner.weight":
                first[one] = 0.95 * first[one] + 0.05 * gradient
                step = newton_schulz(0.95 * first[one] + 0.05 * gradient)
                due[one] = (1 - 0.02 * factor * 0.3) * due[one] - 0.02 * factor * 2**0.5 * step
                continue
            first[one] = 0.8 * first[one] + 0.2 * gradient
            second[one] = 0.97 * second[one] + 0.03 * gradient**2
            root = (second[one] / (1 - 0.97**number)).sqrt() + 1e-3
            if one in ("inner.weight", "embedding.weight"):
                due[one] = (1 - 0.01 * factor * 0.3) * due[one]
            due[one] = due[one] - 0.01 * factor * first[one] / (1 - 0.8**number) / root
        optimizers.step(factor)
    for one, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), due[one], rtol=1e-12, atol=1e-13)


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


def test_state_of_before_the_first_update_takes_all_moments_away() -> None:
    """A rollback to the start, where a checkpoint has none."""
    model = Small()
    optimizers = make_optimizers(model, Train(optimizer=chosen("optimizer", "muon")), everything)
    updated(model, optimizers, 0)
    assert optimizers.state_dict()
    optimizers.load_state_dict({})
    assert optimizers.state_dict() == {} and len(list(optimizers.held())) == 4


def test_untrained_parameters_are_left_out() -> None:
    model = Small()
    train = Train(optimizer=chosen("optimizer", "adamw"))
    names = make_optimizers(model, train, lambda name: name.startswith("inner")).names
    assert set(names) == {"inner.weight", "inner.bias"}
    with pytest.raises(RecipeError, match="nothing to train"):
        make_optimizers(model, train, lambda name: False)


def test_a_parameter_that_two_optimisers_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be updated twice a step."""
    build = update_rules.AdamW.build
    monkeypatch.setattr(update_rules.AdamW, "build", lambda self, parameters: build(self, parameters) * 2)
    with pytest.raises(PluginError, match=r"did not put embedding\.weight into exactly one group of one optimiser"):
        make_optimizers(Small(), Train(optimizer=chosen("optimizer", "adamw")), everything)


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
