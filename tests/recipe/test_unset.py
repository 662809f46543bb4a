"""Keys that are taken out again, and options that go with their component."""

from __future__ import annotations

from pathlib import Path

import pytest

from muse_core.errors import RecipeError
from muse_core.recipe.reading import read_source

BASE = """\
name = "base"
data = { use = "files", paths = ["a.txt"], tokenizer = "bytes" }
[train]
max_seconds = 3.0
steps = 5
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.toml"
    path.write_text(BASE)
    return path


def test_an_empty_value_takes_a_key_out(base: Path) -> None:
    source = read_source(base, ["train.max_seconds="])
    assert source.table["train"] == {"steps": 5} and ("train", "max_seconds") not in source.places
    with pytest.raises(RecipeError, match="train.log_every is not written"):
        read_source(base, ["train.log_every="])
    with pytest.raises(RecipeError, match="is not written"):
        read_source(base, ["name.more="])


def test_a_recipe_takes_keys_of_the_one_below_out(base: Path) -> None:
    over = base.with_name("over.toml")
    over.write_text('extends = "base.toml"\nunset = ["train.max_seconds"]\n')
    assert read_source(over).table["train"] == {"steps": 5}
    over.write_text('extends = "base.toml"\nunset = ["train.nothing"]\n')
    with pytest.raises(RecipeError, match=r"over.toml:2: unset: train.nothing is not written"):
        read_source(over)
    over.write_text('extends = "base.toml"\nunset = "train.steps"\n')
    with pytest.raises(RecipeError, match="must be a list of keys"):
        read_source(over)
    over.write_text('unset = ["train.steps"]\n')
    with pytest.raises(RecipeError, match="that this one extends"):
        read_source(over)


def test_another_use_drops_the_options_of_the_one_before(base: Path) -> None:
    """As ``extends`` does; what --set itself says stays, whatever the order."""
    assert read_source(base, ["data.use=state-of-the-union"]).table["data"] == {
        "use": "state-of-the-union", "tokenizer": "bytes"
    }
    for order in (1, -1):
        given = ["data.use=hub", "data.name=x"][::order]
        assert read_source(base, given).table["data"] == {"use": "hub", "tokenizer": "bytes", "name": "x"}
    assert read_source(base, ["data.use=files"]).table["data"]["paths"] == ["a.txt"]


def test_extends_with_a_control_character_is_a_sentence(base: Path) -> None:
    base.write_text('extends = "a\\u0000b.toml"\n')
    with pytest.raises(RecipeError, match="without control characters"):
        read_source(base)
