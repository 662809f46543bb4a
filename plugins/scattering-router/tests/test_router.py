"""The scattering router: features, bins that follow accepted steps, resonance, and no expert dead at the start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_core.building import build_model
from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table
from muse_core.testing import build_component

HEADS, N = 8, 400


def signals(seed: int, scale: float = 1.0, shift: float = 0.0) -> dict[str, Tensor]:
    """Of the kind a resolvent gives: δ of deviation 0.25, log |θ| around −0.3."""
    generator = torch.Generator().manual_seed(seed)
    phase = 0.25 * scale * torch.randn(2, N, HEADS, generator=generator) + shift
    modulus = (-0.3 + 0.19 * scale * torch.randn(2, N, HEADS, generator=generator) + shift).exp()
    angle = torch.rand(2, N, HEADS, generator=generator) * math.pi
    return {"phase": phase, "theta": torch.stack((modulus * angle.cos(), modulus * angle.sin()), -1)}


def router(experts: int = 8, **options: Any) -> Any:
    shapes = {"phase": (HEADS,), "theta": (HEADS, 2)}
    return build_component("router", "scattering", options, experts=experts, signals=shapes)


def tokens(valid: Tensor | None = None) -> Tokens:
    return Tokens(torch.arange(N).expand(2, -1), valid=valid)


def route(module: Any, given: dict[str, Tensor], valid: Tensor | None = None) -> Any:
    return module(torch.zeros(2, N, 16), given, tokens(valid))


def step(module: Any, given: dict[str, Tensor], valid: Tensor | None = None) -> None:
    """What a run does in an accepted step."""
    metrics = route(module.train(), given, valid).metrics
    module.update_statistics({name: float(value) for name, value in metrics.items()}, 0.0)


@pytest.mark.parametrize(("map", "least"), [("bins", 0.02), ("linear", 0.01)])
def test_every_expert_is_reached_at_the_start_in_a_model(map: str, least: float) -> None:
    """In the first forward pass, before anything was measured, in every block and for several seeds."""
    for seed in range(4):
        block = [
            {"use": "resolvent", "heads": 32, "potential": [{"use": "non-hermitian", "scale": 1.0}]},
            {"use": "experts", "experts": 8, "router": {"use": "scattering", "map": map, "top_k": 2}},
        ]
        registry = load_plugins()
        table = {"name": "t", "seed": seed, "model": {"width": 64, "depth": 3, "block": block}}
        model, _ = build_model(check_table(table, registry).recipe, registry, vocabulary_size=64)
        metrics = model(torch.randint(64, (4, 256), generator=torch.Generator().manual_seed(seed))).metrics
        loads = [value.item() for name, value in metrics.items() if "/load_" in name and "entropy" not in name]
        assert len(loads) == 24 and min(loads) > least, f"an expert starts with {min(loads):.2%} of the choices"


@pytest.mark.parametrize("map", ["bins", "linear"])
def test_mean_logits_are_equal_once_the_averages_have_seen_the_text(map: str) -> None:
    module = router(map=map)
    given = signals(1, scale=3.0, shift=2.0)
    given["phase"] += torch.linspace(0, 3, HEADS)
    before = route(module.eval(), given).logits.mean((0, 1))
    step(module, given)
    after = route(module.eval(), given).logits.mean((0, 1))
    assert before.std() > 0.3 > 0.02 > after.std(), "features far from the expected ones are centred by one step"


def test_quantiles_are_those_of_the_text_over_valid_tokens() -> None:
    module = router(map="bins", channels=HEADS, bins=4)
    given = signals(2, scale=2.0)
    valid = torch.arange(N).expand(2, -1) < 300
    given["phase"][~valid] = 1e6
    step(module, given, valid)
    bins = module.scale(module.features(given, torch.float32))
    for feature in range(2 * HEADS):
        counts = torch.bincount(bins[..., feature][valid], minlength=4)
        assert (counts - 150).abs().max() <= 1


def test_averages_are_constant_within_a_step_and_in_evaluation() -> None:
    module = router(map="bins")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    route(module.train(), signals(3))
    measured = route(module.eval(), signals(4)).metrics
    module.update_statistics({name: float(value) for name, value in measured.items()}, 0.5)
    module.update_statistics({"edge_0_0": math.nan} | {name: 1.0 for name in before}, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    step(module, signals(3))
    assert not torch.equal(module.scale.values, before["scale.values"])


def test_the_first_steps_count_evenly_and_later_ones_by_the_decay() -> None:
    module = router(map="linear", decay=0.5)
    means = []
    for shift in (1.0, 3.0, 5.0):
        given = signals(5, shift=shift)
        step(module, given)
        means.append(module.features(given, torch.float32)[..., 0].mean().item())
    assert module.scale.values[0, 0].item() == pytest.approx(((means[0] + means[1]) / 2 + means[2]) / 2, rel=1e-4)


def test_more_experts_at_resonance() -> None:
    module = router(top_k=1, resonant_top_k=3, resonance=0.75)
    given = signals(6)
    step(module, given)
    routing = route(module.eval(), given)
    modulus = given["theta"].square().sum(-1).log().mean(-1)
    resonant = modulus > modulus.flatten().quantile(0.75)
    slots = (routing.expert >= 0).sum(-1)
    assert torch.equal(slots == 3, resonant) and torch.equal(slots == 1, ~resonant)
    assert routing.metrics["resonance"] == pytest.approx(0.25, abs=0.01)


def test_a_single_choice_still_trains_the_router() -> None:
    module = router(map="bins", top_k=1, resonant_top_k=1)
    routing = route(module, signals(7))
    assert routing.expert.shape[-1] == 1 and ((routing.weight > 0.5) & (routing.weight < 1)).any()
    (gradient,) = torch.autograd.grad((routing.weight * torch.randn(2, N, 1)).sum(), module.score.weight)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "shapes", "sentence"),
    [
        ({"top_k": 5}, None, "top_k = 5 exceeds the number of experts, 4"),
        ({"resonant_top_k": 5}, None, "resonant_top_k = 5 exceeds the number of experts, 4"),
        ({"channels": 9}, None, "channels = 9 exceeds the 8 heads"),
        ({}, {"phase": (8,), "theta": (8,)}, "not those of one resolvent"),
        ({"map": "table"}, None, "linear"),
        ({"resonance": 0.5}, None, "resonance = 0.5 changes nothing"),
        ({"top_k": 3, "resonant_top_k": 3, "resonance": 0.5}, None, "as many experts as the others, 3"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], shapes: Any, sentence: str) -> None:
    shapes = shapes or {"phase": (HEADS,), "theta": (HEADS, 2)}
    with pytest.raises(RecipeError, match=sentence):
        build_component("router", "scattering", options, experts=4, signals=shapes)


@pytest.mark.parametrize("top_k", [1, 3])
def test_nothing_depends_on_resonance_unless_it_is_asked_for(top_k: int) -> None:
    module = router(top_k=top_k)
    assert module.resonance is None and module.slots == top_k and module.expected_slots == top_k
