"""What is written reads back as it was meant, and a resolved recipe is the same recipe."""

import os
import tomllib

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.errors import RecipeError
from muse_core.recipe import check_table, read_recipe, to_toml
from muse_core.recipe.writing import normalised

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\\\"'\n\t#x41"))
SCALAR = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
KEY = st.text("abcdefgh_-0", min_size=1, max_size=4)
LIST = st.one_of(*(st.lists(kind, max_size=3) for kind in (st.booleans(), st.integers(-9, 9), st.floats(-1, 1), TEXT)))


def tables(values):
    return st.dictionaries(KEY, values, min_size=1, max_size=4)


TABLE = tables(st.recursive(
    SCALAR | LIST, lambda values: tables(values) | st.lists(tables(values), min_size=1, max_size=3), max_leaves=8))


@settings(max_examples=80, deadline=None)
@given(TABLE)
def test_any_table_of_a_recipes_types_survives_the_trip(table):
    assert tomllib.loads(to_toml(table)) == normalised(table)


def test_backslashes_survive_where_toml_itself_would_lose_them():
    assert tomllib.loads(to_toml({"path": "C:\\x41\\new"})) == {"path": "C:\\x41\\new"}


@pytest.mark.parametrize(
    "table, normal",
    [
        ({"a": None, "b": {}, "c": {"d": None}}, {}),
        ({"a": ["snr", {"use": "b"}]}, {"a": [{"use": "snr"}, {"use": "b"}]}),
        ({"a": [1, 2.5]}, {"a": [1.0, 2.5]}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
    ],
)
def test_normal_form(table, normal):
    assert repr(normalised(table)) == repr(normal)


@pytest.mark.parametrize("key", ["a\\x41", "a\x07", "\ud800"])
def test_keys_that_toml_would_write_otherwise_are_refused(key):
    with pytest.raises(RecipeError, match="a key with control characters"):
        to_toml({"table": {key: 1}})


@pytest.mark.parametrize("value", ["a\x07b", "\x7f", "\r", "\ud800", [1, "a"], [[1]], [True, 1], object()])
def test_what_toml_cannot_say_is_refused_by_key(value):
    with pytest.raises(RecipeError, match=r"^model\.a"):
        to_toml({"model": {"a": value}})


RICH = {
    "name": "x",
    "data": {"use": "pages", "paths": ["a\\b", 'c"d'], "tokenizer": {"use": "bpe", "vocabulary": 400}},
    "model": {"width": 8, "block": [
        {"use": "mixer", "potential": ["flat", {"use": "well", "depth": 1}], "gain": 2},
        {"use": "memory", "at": "::2", "filters": [], "spread": [1, 0.5]},
        "dense",
    ]},
    "train": {"optimizer": {"use": "muon", "momentum": 0.5}, "sequence_length": 100, "max_seconds": 3},
    "kernels": {"backend": ["slow", "fast"]},
    "initializers": [{"use": "scaled", "match": "*.weight"}],
    "init": {"from": "runs/a"},
    "monitors": "guard",
}


def test_the_resolved_recipe_is_the_same_recipe(registry, tmp_path):
    checked = check_table(RICH, registry)
    (tmp_path / "recipe.toml").write_text(to_toml(checked.resolved))
    again = read_recipe(tmp_path / "recipe.toml", registry=registry)
    assert again.recipe == checked.recipe
    assert again.resolved == checked.resolved


def test_the_resolved_recipe_holds_every_default(registry):
    resolved = check_table(RICH, registry).resolved
    assert resolved["model"]["block"][1] == {
        "use": "memory", "heads": 4, "period": 64, "filters": [], "spread": [1.0, 0.5], "at": "::2"}
    assert resolved["train"]["optimizer"] == {
        "use": "muon", "learning_rate": 0.02, "momentum": 0.5, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}
    assert resolved["init"] == {"from": os.path.abspath("runs/a"), "rename": [], "fresh": []}
    assert resolved["stages"] == [{"use": "train"}]
    numbers = resolved["train"]["max_seconds"], resolved["model"]["block"][0]["gain"]
    assert [type(number) for number in numbers] == [float, float]


def test_a_change_of_any_default_shows_in_the_resolved_recipe(registry):
    """The resolved recipe stays what it was when a later version has other defaults."""
    checked = check_table({"name": "x", "model": {"block": ["dense"]}}, registry)
    for field in attrs.fields(type(checked.recipe.train)):
        value = getattr(checked.recipe.train, field.name)
        assert (field.name in checked.resolved["train"]) == (value is not None)
