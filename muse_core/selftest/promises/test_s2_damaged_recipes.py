"""S2: no damaged recipe ends in a traceback, takes more than 2 s of processor time or more than 256 MiB; the command
ends with exit code 2."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from muse_core.cli.run import main
from muse_core.errors import RecipeError
from muse_core.recipe import read_recipe
from muse_core.selftest.reliability import recipes

pytestmark = pytest.mark.promise("S2")


def test_damaged_recipes_end_in_sentences(trial):
    count = trial.size(2_000, 100_000)
    command = [sys.executable, "-m", recipes.__name__, "--recipes", str(count), "--seed", str(trial.seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.fullmatch(
        r"seed \d+: (\d+) recipes, (\d+) refused, slowest ([\d.]+) s of processor time, (\d+) MiB, 0 problems\n",
        done.stdout,
    )
    assert found and done.returncode == 0, done.stdout + done.stderr
    assert int(found[1]) == count and count / 2 < int(found[2]) < count
    trial.say(f"{found[1]} recipes, {found[2]} refused, slowest {found[3]} s, {found[4]} MiB")


@pytest.mark.parametrize("width", [1, 6, 7])
def test_a_width_that_heads_do_not_divide_is_a_sentence(tmp_path, width):
    """Found by the long form: asking the memory for its signals raised."""
    path = tmp_path / "x.toml"
    path.write_text(recipes.GOOD.replace("width = 64", f"width = {width}"))
    with pytest.raises(RecipeError, match=f"heads is 4, which does not divide the width {width}"):
        read_recipe(path)


def test_the_command_names_the_key_and_ends_with_two(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(recipes.GOOD.replace("dropout = 0.1", "dropuot = 0.1"))
    ended = CliRunner().invoke(main, [str(path)])
    assert ended.exit_code == 2
    assert f"{path}:10: model.dropuot: " in ended.output and "did you mean 'dropout'" in ended.output
