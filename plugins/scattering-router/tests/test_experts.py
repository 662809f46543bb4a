"""The layer of experts: its formula, its losses and measures, its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from muse_core.building import build_model
from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.evaluation.causality import exact_leak, own_precision_leak
from muse_core.model.flops import active_parameters, parameter_count
from muse_core.model.precision import choose_precision
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table
from muse_core.testing import build_component

B, N, D = 3, 40, 16
TOKENS = Tokens(torch.arange(N).expand(B, -1))


def layer(**options: Any) -> Any:
    given = {"experts": 4, "router": "mlp"} | options
    return build_component("layer", "experts", given, width=D, dtype="float64").double()


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "relu-squared"])
def test_update_is_the_weighted_sum_of_the_chosen_experts(activation: str) -> None:
    experts = layer(activation=activation)
    x = torch.randn(B, N, D, dtype=torch.float64)
    routing = experts.router(x, {}, TOKENS)
    due = torch.zeros_like(x)
    for index in range(4):
        hidden = x @ experts.input[index].T
        if activation == "swiglu":
            value, gate = hidden.chunk(2, -1)
            hidden = value * F.silu(gate)
        else:
            hidden = F.gelu(hidden) if activation == "gelu" else F.relu(hidden).square()
        weight = (routing.weight * (routing.expert == index)).sum(-1, keepdim=True)
        due += weight * (hidden @ experts.output[index].T)
    torch.testing.assert_close(experts(x, None, {}, TOKENS).update, due)


def test_only_chosen_experts_are_computed() -> None:
    experts = layer()
    with torch.no_grad():
        experts.input[2].fill_(torch.nan)
        experts.router.score.weight[2].zero_()
        x = torch.randn(B, N, D, dtype=torch.float64)
        chosen = (experts.router(x, {}, TOKENS).expert == 2).any(-1)
        broken = experts(x, None, {}, TOKENS).update.isnan().any(-1)
    assert 0 < chosen.sum() < B * N and torch.equal(broken, chosen)


def test_two_experts_are_as_active_as_a_dense_layer() -> None:
    dense = build_component("layer", "feed-forward", width=96)
    experts = build_component("layer", "experts", {"router": {"use": "mlp", "top_k": 2}}, width=96)
    assert 2 * (experts.input[0].numel() + experts.output[0].numel()) == sum(p.numel() for p in dense.parameters())
    router = 2 * experts.router.score.weight.numel()
    assert experts.flops_per_token() == 2 * sum(p.numel() for p in dense.parameters()) + router


def test_active_parameters_leave_out_the_experts_that_a_token_does_not_use_and_nothing_else() -> None:
    experts = layer(router={"use": "mlp", "top_k": 2})
    whole, one = parameter_count(experts), experts.input[0].numel() + experts.output[0].numel()
    model = nn.Sequential(nn.LayerNorm(D), experts, nn.Linear(D, D))
    assert active_parameters(experts) == whole - 2 * one
    assert active_parameters(model) == parameter_count(model) - 2 * one
    assert active_parameters(model[2]) == D * D + D
    twice = nn.Sequential(nn.Sequential(experts), nn.Sequential(experts))  # its unused experts were taken off twice
    assert active_parameters(twice) == active_parameters(experts)


def test_losses_and_measures_by_hand() -> None:
    experts = layer(balance=0.5, z_loss=0.25)
    x = torch.randn(B, N, D, dtype=torch.float64)
    valid = torch.arange(N).expand(B, -1) < torch.tensor([[N], [7], [20]])
    step = experts(x, None, {}, TOKENS._replace(valid=valid))
    routing = experts.router(x, {}, TOKENS)
    logits, chosen = routing.logits[valid], routing.expert[valid]
    load = torch.bincount(chosen.flatten(), minlength=4) / chosen.numel()
    mean = logits.softmax(-1).mean(0)
    assert step.losses["balance"].item() == pytest.approx(0.5 * valid.sum().item() * 4 * (load * mean).sum().item())
    assert step.losses["z"].item() == pytest.approx(0.25 * logits.logsumexp(-1).square().sum().item())
    assert [step.metrics[f"load_{index}"].item() for index in range(4)] == pytest.approx(load.tolist())
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean() / torch.tensor(4.0).log()
    assert step.metrics["entropy"].item() == pytest.approx(entropy.item())
    load_entropy = torch.distributions.Categorical(probs=load).entropy() / torch.tensor(4.0).log()
    assert step.metrics["load_entropy"].item() == pytest.approx(load_entropy.item())
    assert step.metrics["busiest_max"].item() == pytest.approx(load.max().item())
    assert step.metrics["slots"] == 2 and step.metrics["dropped"] == 0
    assert not step.update[~valid].any(), "padding was computed"


def test_balanced_experts_pay_one_a_token() -> None:
    experts = layer(balance=1.0, router={"use": "mlp", "top_k": 4})
    with torch.no_grad():
        experts.router.score.weight.zero_()
    losses = experts(torch.randn(B, N, D, dtype=torch.float64), None, {}, TOKENS).losses
    assert losses["balance"].item() == pytest.approx(B * N)


def test_capacity_drops_in_training_only() -> None:
    experts = layer(capacity=0.5)
    x = torch.randn(B, N, D, dtype=torch.float64)
    free = layer()(x, None, {}, TOKENS).update
    trained, evaluated = experts.train()(x, None, {}, TOKENS), experts.eval()(x, None, {}, TOKENS)
    assert trained.metrics["dropped"] >= 0.5 and evaluated.metrics["dropped"] == 0
    assert torch.equal(evaluated.update, free) and not torch.equal(trained.update, free)


@pytest.mark.parametrize("router", ["mlp", {"use": "scattering", "top_k": 1, "resonant_top_k": 2, "resonance": 0.5}])
def test_the_causality_gate_passes_in_both_precisions(router: Any) -> None:
    registry = load_plugins()
    block = [{"use": "resolvent", "heads": 8}, {"use": "experts", "router": router}]
    table = {"name": "t", "model": {"width": 24, "depth": 2, "block": block, "exit": "act"}}
    recipe = check_table(table, registry).recipe
    model, _ = build_model(recipe, registry, vocabulary_size=32)
    for precision in ("fp32", "bf16"):
        assert own_precision_leak(model, 32, 64, choose_precision(torch.device("cpu"), precision), routed=True) is None
    exact, _ = build_model(recipe, registry, vocabulary_size=32, dtype="float64")
    assert exact_leak(exact.double(), 24, ()) is None


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ([{"use": "experts", "experts": 4, "router": {"use": "mlp", "top_k": 5}}], "k = 5 exceeds .*, 4"),
        ([{"use": "resolvent"}, {"use": "experts", "experts": 1, "router": "scattering"}], "top_k = 2 exceeds"),
        ([{"use": "experts", "experts": 0, "router": "mlp"}], "experts"),
        ([{"use": "experts", "router": "act"}], "use it in .model. exit"),
        ([{"use": "experts", "router": "scattering"}], "reads the signal 'phase', which no"),
        ([{"use": "experts", "router": "scattering"}, {"use": "resolvent"}], "resolvent provides only later"),
        ([{"use": "mlp"}], "mlp"),
        ([{"use": "experts", "router": "feed-forward"}], "feed-forward"),
    ],
)
def test_bad_recipes_are_refused_by_name(block: list[Any], sentence: str) -> None:
    registry = load_plugins()
    with pytest.raises(RecipeError, match=sentence):
        check_table({"name": "t", "model": {"width": 16, "depth": 1, "block": block}}, registry)
