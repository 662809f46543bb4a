"""What is compared is of one size: recipes that results hold side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from muse_core.building import build_model
from muse_core.plugins import load_plugins
from muse_core.recipe import read_recipe
from tests.commands import without_random_values

ROOT = Path(__file__).parent.parent.parent


def parameters(recipe: str) -> int:
    checked = read_recipe(ROOT / "recipes" / f"{recipe}.toml", (), load_plugins())
    with without_random_values():
        model, _ = build_model(checked.recipe, checked.registry, vocabulary_size=257)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("one", "other"),
    [("phase2_base", "transformer_base"), ("experiments/phase2_10m", "experiments/transformer_10m"),
     ("experiments/phase2_10m", "experiments/gated_deltanet_10m"), ("mag_base", "transformer_base"),
     ("experiments/mag_10m", "experiments/transformer_conv_10m"), ("experiments/mag_10m", "experiments/phase2_10m"),
     ("experiments/mag_hybrid_10m", "experiments/mag_10m"),
     ("experiments/mag_hybrid_10m", "experiments/transformer_conv_10m")],
)
def test_recipes_that_are_compared_have_equal_parameters(one: str, other: str) -> None:
    assert parameters(one) == pytest.approx(parameters(other), rel=0.02)
