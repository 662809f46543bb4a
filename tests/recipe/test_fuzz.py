"""Hundreds of damaged recipes: each is checked or refused in sentences, never a traceback."""

import copy
import random
import tomllib

from muse_core.errors import RecipeError
from muse_core.recipe import check_table, read_recipe, to_toml
from muse_core.selftest.reliability.recipes import damaged


def test_the_good_recipe_is_good(good, registry, tmp_path):
    (tmp_path / "x.toml").write_text(good)
    assert read_recipe(tmp_path / "x.toml", registry=registry).recipe.name == "fuzz"


def test_three_hundred_damaged_files(good, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = 0
    for seed in range(300):
        with open("x.toml", "w", encoding="utf-8") as stream:
            stream.write(damaged(good, random.Random(seed)))
        try:
            checked = read_recipe("x.toml", registry=registry)
        except RecipeError as error:
            refused += 1
            assert error.problems and all(line.startswith("x.toml") for line in error.problems), seed
            assert all(line.isprintable() for line in error.problems), seed
            continue
        to_toml(checked.resolved)
        assert check_table(checked.resolved, registry).recipe == checked.recipe
    assert 200 <= refused < 300


VALUES = [
    None, True, 0, -1, 1, 2**63, -(10**400), 0.5, float("nan"), float("inf"), "", "snr", "\x00", "a" * 5000, [], [[]],
    {}, [None], {"use": None}, {"use": "snr", "a": {}}, [{"use": "memory"}], {"": ""}, {1: 2}, object(), b"x",
]


def test_any_value_in_any_place_of_a_table(good, registry):
    table_of_good = tomllib.loads(good)
    pairs = [(path, value) for path in places(table_of_good) for value in VALUES]
    for path, value in random.Random(0).sample(pairs, 200):
        table = copy.deepcopy(table_of_good)
        holder = table
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = value
        try:
            checked = check_table(table, registry)
        except RecipeError as error:
            assert all(line.startswith("<table>: ") for line in error.problems), (path, value)
        else:
            assert check_table(checked.resolved, registry).recipe == checked.recipe


def places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield (*path, step)
        yield from places(item, (*path, step))
