"""Relative paths are relative to the file that writes them, and a resolved recipe means the same from every folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import pytest

from muse_core.component import PathMark, RecipePath
from muse_core.errors import RecipeError
from muse_core.recipe import check_table, read_recipe, to_toml
from muse_core.recipe.check import read_table


@pytest.fixture
def project(tmp_path, monkeypatch):
    """project/recipes/base.toml, which another recipe in project/ extends; the working directory is elsewhere."""
    recipes = tmp_path / "project" / "recipes"
    recipes.mkdir(parents=True)
    (recipes / "base.toml").write_text(
        'name = "x"\n[data]\nuse = "files"\npaths = ["../data/*.txt", "/absolute/a.txt"]\ncache = "cache"\n'
        'tokenizer = { use = "gpt2", vocab = "vocab.json", merges = "~/merges.txt" }\n'
        '[init]\nfrom = "../runs/one"\n[[stages]]\nuse = "convert"\nto = "other.toml"\n'
        '[[model.block]]\nuse = "feed-forward"\n'
    )
    (tmp_path / "project" / "over.toml").write_text('extends = "recipes/base.toml"\n[data]\ncache = "mine"\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "project"


def test_f11_paths_are_relative_to_the_file_that_writes_them(project):
    recipe = read_recipe(Path("..") / "project" / "over.toml").recipe
    assert recipe.data.source.options.paths == (str(project / "data" / "*.txt"), "/absolute/a.txt")
    assert recipe.data.tokenizer.options.vocab == str(project / "recipes" / "vocab.json")
    assert recipe.data.tokenizer.options.merges == str(project.parent / "home" / "merges.txt")
    assert recipe.init.from_ == str(project / "runs" / "one")
    assert recipe.stages[0].options.to == str(project / "recipes" / "other.toml")
    assert recipe.data.cache == str(project / "mine")


def test_f11_paths_of_the_command_line_are_relative_to_the_working_directory(project):
    changes = ['init.from="run"', "data.paths[0]=a.txt", "data.cache=here"]
    recipe = read_recipe(project / "over.toml", changes).recipe
    here = project.parent / "elsewhere"
    assert recipe.init.from_ == str(here / "run") and recipe.data.cache == str(here / "here")
    assert recipe.data.source.options.paths == (str(here / "a.txt"), "/absolute/a.txt")


def test_f11_the_tokenizer_of_a_run_is_where_its_weights_are(project):
    """The run of ``init.from`` is one, whoever names it and whoever writes [data]."""
    base = project / "recipes" / "base.toml"
    base.write_text(base.read_text().replace("tokenizer = {", "# {"))
    for changes in ([], ['data={use="files",paths=["a.txt"]}'], ['init.from="run"']):
        for path in (base, project / "over.toml"):
            recipe = read_recipe(path, changes).recipe
            assert recipe.data.tokenizer.name == "run" and recipe.data.tokenizer.options.from_ == recipe.init.from_


def test_f11_the_resolved_recipe_means_the_same_everywhere(project, tmp_path, monkeypatch):
    checked = read_recipe(project / "over.toml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text(to_toml(checked.resolved))
    monkeypatch.chdir("/")
    assert read_recipe(tmp_path / "run" / "recipe.toml").recipe == checked.recipe
    assert check_table(checked.resolved).recipe == checked.recipe


def test_f11_a_name_on_the_hub_stays_a_name_unless_a_folder_has_it(project):
    path = project / "hub.toml"
    path.write_text('name = "x"\n[data]\nuse = "hub"\nname = "someone/set"\n[[model.block]]\nuse = "feed-forward"\n')
    assert read_recipe(path).recipe.data.source.options.name == "someone/set"
    (project / "someone" / "set").mkdir(parents=True)
    assert read_recipe(path).recipe.data.source.options.name == str(project / "someone" / "set")


@pytest.mark.parametrize(("path", "said"), [
    ("", 'bad.toml:4: data.paths[0]: must be a path, not empty - "." is the folder of the recipe'),
    ("~nobody-of-this-name/x", "data.paths[0]: there is no home folder '~nobody-of-this-name' here - write"),
])
def test_a18_unusable_paths_are_sentences(project, path, said):
    (project / "bad.toml").write_text(f'name = "x"\n[data]\nuse = "files"\npaths = ["{path}"]\n')
    with pytest.raises(RecipeError) as refused:
        read_recipe(project / "bad.toml")
    assert said in str(refused.value)


def test_a18_extends_with_a_null_character_is_a_sentence(project):
    (project / "bad.toml").write_text('extends = "a\\u0000b.toml"\n')
    with pytest.raises(RecipeError, match=r"bad\.toml:1: extends: must be a path without control characters"):
        read_recipe(project / "bad.toml")


@attrs.frozen(kw_only=True)
class Table:
    """What a plugin's options may hold."""

    files: tuple[RecipePath, ...] = ()
    """Some files."""
    either: Annotated[str, PathMark(or_name=True)] | None = None
    """A name or a folder."""


def test_options_of_third_parties_use_the_same_mark(project):
    (project / "table.toml").write_text('files = ["a", "b/c"]\neither = "recipes"\n')
    table = read_table(project / "table.toml", Table)
    assert table.files == (str(project / "a"), str(project / "b" / "c")) and table.either == str(project / "recipes")
