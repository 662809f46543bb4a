"""S3: what is beyond the limits of a recipe is refused in a sentence, before a parser could drown in it."""

from __future__ import annotations

import time

import pytest

from muse_core.errors import RecipeError
from muse_core.recipe import read_recipe
from muse_core.recipe.positions import MAX_BYTES, MAX_DEPTH, MAX_KEY_PARTS

pytestmark = pytest.mark.promise("S3")

TOO_MUCH = {
    "bytes": "#" * (MAX_BYTES + 1),
    "a dotted key of 40 kB": "a." * 20_000 + "b = 1",
    "parts of a dotted key": ".".join("a" * (MAX_KEY_PARTS + 1)) + " = 1",
    "parts of a header": "[" + ".".join("a" * (MAX_KEY_PARTS + 1)) + "]",
    "nesting of lists": "a = " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "nesting of tables": "a = " + "{ a = " * (MAX_DEPTH + 1) + "1" + " }" * (MAX_DEPTH + 1),
    "100,000 brackets": "a = " + "[" * 100_000,
    "a number of 100 kB": "seed = " + "9" * 100_000,
    "a whole number beyond 64 bits": "seed = " + str(2**64),
    "a whole number below 64 bits": "train.steps = -" + str(2**64),
    "a seed beyond its range": "seed = " + str(2**31),
    "a list of 100,000": "a = [" + "1," * 100_000 + "]",
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_refused_at_once(name, tmp_path, trial):
    path = tmp_path / "x.toml"
    path.write_text(f'name = "x"\n{TOO_MUCH[name]}\n' if name != "bytes" else TOO_MUCH[name])
    began = time.process_time()
    with pytest.raises(RecipeError) as refused:
        read_recipe(path)
    seconds = time.process_time() - began
    assert refused.value.exit_code == 2
    assert all(line.startswith(str(path)) and len(line) < 1000 for line in refused.value.problems)
    assert seconds < 2
    trial.say(f"{len(TOO_MUCH)} kinds of too much, each refused in its sentence")
