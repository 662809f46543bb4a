"""The compressed model in the core's suite of models, and its own recipe errors."""

from __future__ import annotations

from typing import Any

import pytest

from muse_core.errors import RecipeError
from muse_core.recipe import check_table
from muse_core.testing import ModelSuite
from muse_core.training.setup import set_up

STACK = {
    "width": 16,
    "depth": 2,
    "block": [
        {"use": "resolvent", "heads": 4},
        {"use": "fast-weights", "name": "hebbian", "heads": 2, "period": 8, "filters": ["snr"]},
        {"use": "feed-forward"},
    ],
}


class TestCompressed(ModelSuite):
    """Every form beside plain maps."""

    name = "compressed"
    options = STACK | {
        "map": [
            {"module": "embedding", "store": "int8"},
            {"module": "blocks.0.resolvent.value", "store": "int8"},
            {"module": "blocks.0.hebbian.query", "rank": 5},
            {"module": "blocks.0.feed-forward.input", "rank": 6, "store": "int4"},
            {"module": "blocks.1.hebbian.key", "store": "sparse", "kept": 100},
            {"module": "blocks.1.feed-forward.output", "store": "int4"},
        ]
    }
    test_compiles = None  # the suites of its layers compile; a whole model takes a quarter of a minute


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"module": "blocks.0.resolvent.values"}, "no module"),
    ({"module": "blocks.0.resolvent.value", "rank": 17}, "no rank 17"),
    ({"module": "blocks.0.norms.resolvent", "rank": 2}, "RMSNorm"),
    ({"module": "embedding", "rank": 2}, "embedding"),
    ({"module": "blocks.0.resolvent.value", "store": "sparse"}, "kept"),
    ({"module": "blocks.0.resolvent.value", "store": "sparse", "kept": 10**6}, "kept = 1000000"),
]


@pytest.mark.parametrize(("row", "words"), WRONG)
def test_a_map_that_cannot_be_stored_so_is_an_error_of_the_recipe(row: dict[str, Any], words: str) -> None:
    table = {"name": "x", "model": {"use": "compressed", **STACK, "map": [row]}}
    with pytest.raises(RecipeError, match=words):
        set_up(check_table(table).recipe, check_table(table).registry)


def test_a_map_twice_is_an_error_of_the_recipe() -> None:
    row = {"module": "blocks.0.resolvent.value", "store": "int8"}
    table = {"name": "x", "model": {"use": "compressed", **STACK, "map": [row, row]}}
    with pytest.raises(RecipeError, match="twice"):
        set_up(check_table(table).recipe, check_table(table).registry)
