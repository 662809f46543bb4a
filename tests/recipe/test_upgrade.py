"""Recipes of format 1 and former names of components: read with a note, rewritten with comments kept."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.errors import RecipeError
from muse_core.recipe import check_table, read_recipe

OLD = """format = 1
name = "old"
data = { use = "state-of-the-union" }
monitors = ["gates"]
[model]
width = 32
depth = 1
[[model.block]]
use = "hebbian"   # the memory
rule = "hebbian"
heads = 2
[[model.block]]
use = "feed-forward"
"""
INLINE = """name = "old"
data = { use = "state-of-the-union" }
[model]
width = 32
depth = 1
block = ["hebbian", { use = 'hebbian', name = "slow", rule = "delta" }]
"""


def test_a_recipe_of_format_1_is_read_in_todays_names(tmp_path) -> None:
    path = tmp_path / "old.toml"
    path.write_text(OLD)
    checked = read_recipe(path)
    block = checked.resolved["model"]["block"]
    assert (block[0]["use"], block[0]["name"], block[0]["rule"]) == ("fast-weights", "hebbian", "hebbian")
    assert checked.resolved["monitors"][0]["use"] == "gate-ablation"
    assert checked.resolved["format"] == 2
    renamed = {one.former: one.name for one in checked.renamed}
    assert renamed == {"gates": "gate-ablation", "hebbian": "fast-weights"}


@pytest.mark.parametrize("text", [OLD, INLINE], ids=["tables", "inline"])
def test_the_rewritten_recipe_is_the_same_recipe(tmp_path, text: str) -> None:
    path = tmp_path / "old.toml"
    path.write_text(text)
    ended = CliRunner().invoke(muse, ["recipe", "upgrade", str(path), "-o", str(path)])
    assert ended.exit_code == 0, ended.output
    again = read_recipe(path)
    assert not again.renamed and "gates" not in path.read_text()
    path.write_text(text)
    assert again.resolved == read_recipe(path).resolved


def test_comments_stay(tmp_path) -> None:
    path = tmp_path / "old.toml"
    path.write_text(OLD)
    shown = CliRunner().invoke(muse, ["recipe", "upgrade", str(path)]).output
    assert 'use = "fast-weights"   # the memory\nname = "hebbian"\n' in shown


def test_checking_says_the_note_with_its_line(tmp_path) -> None:
    path = tmp_path / "old.toml"
    path.write_text(OLD)
    ended = CliRunner().invoke(muse, ["recipe", "check", str(path)])
    assert ended.exit_code == 0
    assert f"{path}:8: model.block[0]: 'hebbian' is now called 'fast-weights'" in ended.output


def test_a_name_that_stands_in_another_file_is_not_rewritten_here(tmp_path) -> None:
    (tmp_path / "base.toml").write_text(OLD)
    path = tmp_path / "more.toml"
    path.write_text('extends = "base.toml"\nname = "more"\n')
    ended = CliRunner().invoke(muse, ["recipe", "upgrade", str(path)])
    assert ended.exit_code == 2 and "upgrade that file first" in ended.output


def test_a_former_name_is_no_name_of_another_kind() -> None:
    with pytest.raises(RecipeError, match="there is no filter 'hebbian'"):
        check_table({"name": "x", "data": "state-of-the-union", "model": {
            "width": 8, "depth": 1, "block": [{"use": "fast-weights", "filters": ["hebbian"]}]}})
