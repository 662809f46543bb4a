"""The schema accepts what the checker accepts, and refuses what one key alone shows to be wrong."""

import copy
import tomllib

import pytest
from jsonschema import Draft7Validator

from muse_core.recipe import check_table
from muse_core.recipe.json_schema import recipe_schema


@pytest.fixture(scope="module")
def validator(registry):
    schema = recipe_schema(registry)
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def test_a_sound_recipe_fits(validator, good, registry):
    table = tomllib.loads(good)
    assert list(validator.iter_errors(table)) == []
    assert list(validator.iter_errors(check_table(table, registry).resolved)) == []


def test_a_recipe_that_extends_another_may_leave_the_rest_to_it(validator):
    assert validator.is_valid({"extends": "base.toml", "train": {"steps": 3}})
    assert not validator.is_valid({"train": {"steps": 3}})


@pytest.mark.parametrize(
    "path, value",
    [
        (("sede",), 3),
        (("seed",), -1),
        (("name",), "a/b"),
        (("train", "steps"), 0),
        (("train", "steps"), "3"),
        (("train", "precision"), "fp16"),
        (("train", "optimizer"), {"use": "adamw", "momentum": 0.9}),
        (("train", "optimizer"), "sgd"),
        (("data", "tokenizer"), {"use": "bpe", "vocabulary": 3}),
        (("data", "use"), "page"),
        (("data", "path"), ["a"]),
        (("model", "block"), "mixer"),
        (("model", "block", 1, "use"), "memroy"),
        (("model", "block", 1, "haeds"), 3),
        (("model", "block", 1, "at"), "every fourth"),
        (("model", "block", 1, "filters", 1, "treshold"), 3),
        (("model", "block", 1, "filters", 1, "mode"), "middle"),
        (("model", "block", 0, "potential", 0), {"use": "well"}),
        (("initializers", 0), {"use": "scaled"}),
        (("monitors",), 3),
    ],
)
def test_a_wrong_one_does_not(validator, good, path, value):
    table = copy.deepcopy(tomllib.loads(good))
    holder = table
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    assert not validator.is_valid(table)


def test_help_defaults_and_ranges_are_there_for_editors(registry):
    schema = recipe_schema(registry)
    assert schema["properties"]["seed"] == {
        "type": "integer", "minimum": 0, "exclusiveMaximum": 2**31, "default": 0,
        "description": "One seed for weights, data order and everything random."}
    memory = schema["definitions"]["memory-layer-lab-memory-in-place"]
    assert memory["properties"]["heads"] == {
        "type": "integer", "minimum": 1, "maximum": 64, "default": 4, "description": "Heads."}
    assert memory["properties"]["use"]["description"] == "A memory."
