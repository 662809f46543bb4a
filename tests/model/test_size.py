"""A model that cannot fit is refused before it is allocated."""

from __future__ import annotations

import pytest

from muse_core.building import build_model
from muse_core.errors import RecipeError
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table


def test_impossible_size_is_a_sentence_and_not_an_allocation() -> None:
    registry = load_plugins()
    model = {"width": 4096, "depth": 1024, "block": ["feed-forward"]}
    recipe = check_table({"name": "huge", "model": model}, registry).recipe
    with pytest.raises(RecipeError, match=r"GiB, and there are .* GiB; lower model.width or model.depth"):
        build_model(recipe, registry, vocabulary_size=257)
