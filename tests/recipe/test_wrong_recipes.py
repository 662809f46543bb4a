"""The corpus of wrong recipes: each file ends with the messages that it must give, as ``#>`` comments.

With MUSE_UPDATE_SNAPSHOTS=1 the messages are written anew; read the difference before committing it.
"""

import os
from pathlib import Path

import pytest

from muse_core.errors import RecipeError
from muse_core.recipe import read_recipe

FILES = sorted((Path(__file__).parent / "wrong").glob("*.toml"))


def test_the_corpus_is_there():
    assert len(FILES) >= 60


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_problem_is_said_at_once_with_its_place(file, registry, monkeypatch):
    monkeypatch.chdir(file.parent)
    with pytest.raises(RecipeError) as caught:
        read_recipe(file.name, registry=registry)
    if os.environ.get("MUSE_UPDATE_SNAPSHOTS") == "1":
        kept = [line for line in file.read_text().splitlines() if not line.startswith("#> ")]
        file.write_text("".join(f"{line}\n" for line in [*kept, *(f"#> {one}" for one in caught.value.problems)]))
    expected = [line[3:] for line in file.read_text().splitlines() if line.startswith("#> ")]
    assert caught.value.problems == expected
    assert all(problem.startswith((file.name, "negative-steps.toml")) for problem in expected)
