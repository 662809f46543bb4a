"""What is compared is of one size: the plan that the how-to shows, and recipes that results hold side by side."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.building import build_model
from muse_core.cli import muse
from muse_core.plugins import load_plugins
from muse_core.recipe import read_recipe

ROOT = Path(__file__).parent.parent.parent


def parameters(recipe: str) -> int:
    checked = read_recipe(ROOT / "recipes" / f"{recipe}.toml", (), load_plugins())
    model, _ = build_model(checked.recipe, checked.registry, vocabulary_size=257)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("one", "other"),
    [("phase2_base", "transformer_base"), ("experiments/phase2_10m", "experiments/transformer_10m"),
     ("experiments/phase2_10m", "experiments/gated_deltanet_10m")],
)
def test_recipes_that_are_compared_have_equal_parameters(one: str, other: str) -> None:
    assert parameters(one) == pytest.approx(parameters(other), rel=0.02)


def test_the_plan_of_the_how_to_is_accepted(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guide" / "how-to" / "compare.md").read_text(encoding="utf-8")
    plan = textwrap.dedent(page[page.index("    # attention-or-memory.toml") : page.index("    muse compare ")])
    path = tmp_path / "attention-or-memory.toml"
    path.write_text(plan.replace('recipe = "recipes/', f'recipe = "{ROOT}/recipes/'), encoding="utf-8")
    ended = CliRunner().invoke(muse, ["compare", str(path), "--dry-run", "--output", str(tmp_path / "out")])
    assert ended.exit_code == 0, ended.output
