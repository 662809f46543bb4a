"""Small mistakes in a sound recipe, as people make them: each is told with its line, key path and the right word."""

import re
import string
import tomllib

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from muse_core.errors import RecipeError
from muse_core.recipe import read_recipe

PLACES = {
    "seed": "seed",
    "data": "data",
    "monitors": "monitors",
    "depth = 4": "model.depth",
    "gain": "model.block[0].gain",
    "potential": "model.block[0].potential",
    "period": "model.block[1].period",
    "filters": "model.block[1].filters",
    "threshold": "model.block[1].filters[1].threshold",
    "mode": "model.block[1].filters[1].mode",
    "steps": "train.steps",
    "learning_rate": "train.learning_rate",
    "optimizer": "train.optimizer",
    "momentum": "train.optimizer.momentum",
    "tokenizer": "data.tokenizer",
    "vocabulary": "data.tokenizer.vocabulary",
    "paths": "data.paths",
}
"""How a key that stands once in the recipe begins there → its key path."""

NAMES = {
    "mixer": "model.block[0].use", "memory": "model.block[1].use", "snr": "model.block[1].filters[0]",
    "well": "model.block[0].potential[0].use", "flat": "model.block[0].potential[1]", "guard": "monitors[0]",
    "scaled": "initializers[0].use", "muon": "train.optimizer.use",
}
"""Component → where the recipe chooses it first."""

VALUES = {
    "seed = 7": ["-1", "0.5", "'seven'", "true", "[7]"],
    "width = 16": ["0", "-3", "16.0", "'16'", "{}"],
    "gain = 1.5": ["'loud'", "[1.5]", "nan", "99.0", "true"],
    "period = 64": ["6.4", "'64'", "[64]"],
    "threshold = 0.1": ["0.0", "-2.0", "'low'", "inf", "true"],
    'mode = "hard"': ["'harder'", "3", "['hard']"],
    "steps = 10": ["0", "-1", "1.5", "'ten'"],
    "learning_rate = 3e-3": ["-1e-3", "'small'", "nan", "[1e-3]"],
    "momentum = 0.9": ["1.5", "-0.1", "'most'"],
    "vocabulary = 400": ["1", "'many'", "4e2"],
    'at = "::2"': ["'7:'", "'odd'", "2.5"],
}
"""Key and value as they stand → values that it must not have."""


def typo(word, kind, place, letter):
    """The word after one slip of the fingers."""
    place %= len(word)
    match kind:
        case "left out":
            return word[:place] + word[place + 1:]
        case "twice":
            return word[:place] + word[place] + word[place:]
        case "swapped":
            place = min(place, len(word) - 2)
            return word[:place] + word[place + 1] + word[place] + word[place + 2:]
        case _:
            return word[:place] + letter + word[place + 1:]


typos = st.tuples(
    st.sampled_from(["left out", "twice", "swapped", "replaced"]), st.integers(0, 30),
    st.sampled_from(string.ascii_lowercase),
)
often = settings(max_examples=60, derandomize=True, deadline=None, database=None)


@pytest.fixture(scope="module")
def complaints(registry, tmp_path_factory):
    """What is said about a text, and the text's line of a character."""
    file = tmp_path_factory.mktemp("mutations") / "x.toml"

    def judge(text):
        file.write_text(text)
        tomllib.loads(text)  # a slip of meaning, not of syntax
        with pytest.raises(RecipeError) as caught:
            read_recipe(file, registry=registry)
        return [problem.removeprefix(f"{file}:") for problem in caught.value.problems]

    return judge


def replaced(text, old, new):
    """The text with the first whole word ``old`` replaced, and the number of its line."""
    found = re.search(rf"(?<![\w.]){re.escape(old)}(?![\w-])", text)
    assert found, old
    return text[:found.start()] + new + text[found.end():], text.count("\n", 0, found.start()) + 1


@often
@given(start=st.sampled_from(sorted(PLACES)), slip=typos)
def test_a_misspelt_key(start, slip, good, complaints):
    path, (key, _, rest) = PLACES[start], start.partition(" ")
    wrong = typo(key, *slip)
    assume(wrong not in good)
    text, line = replaced(good, start, f"{wrong} {rest}".strip())
    said = [one for one in complaints(text) if one.startswith(f"{line}: ")]
    holder = path.rpartition(".")[0]
    own = [one for one in said if one.startswith(f"{line}: {holder}.{wrong}: " if holder else f"{line}: {wrong}: ")]
    assert len(own) == 1, complaints(text)
    assert f"'{wrong}' - did you mean '{key}'?" in own[0]


@often
@given(name=st.sampled_from(sorted(NAMES)), slip=typos)
def test_a_misspelt_component(name, slip, good, complaints):
    wrong = typo(name, *slip)
    assume(wrong != name and f'"{wrong}"' not in good and wrong != "slow")
    text, line = replaced(good, f'"{name}"', f'"{wrong}"')
    (said,) = [one for one in complaints(text) if one.startswith(f"{line}: {NAMES[name]}")]
    assert f"'{wrong}'" in said and f"'{name}'" in said, said


@pytest.mark.parametrize(("old", "value"), [(old, value) for old, values in VALUES.items() for value in values])
def test_a_wrong_value(old, value, good, complaints):
    key = old.partition(" ")[0]
    text, line = replaced(good, old, f"{key} = {value}")
    said = complaints(text)
    assert any(re.match(rf"{line}: ([\w.\[\]]+\.)?{key}\b", one) or (key == "gain" and "gain is more" in one)
               for one in said), said
