"""Small promises about what a run needs around it: caches, homes, tokenizer files, compilers, records in plain JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from muse_core.data.corpus import open_corpus
from muse_core.data.sources import cache_folder, read_tokenizer_file
from muse_core.errors import DataError, RecipeError
from muse_core.recipe import check_table
from muse_core.storage import canonical_json


def test_a_cache_that_cannot_be_written_is_read(table: Any, registry: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    data = check_table(table(data={"cache": str(cache)}), registry).recipe.data
    made = open_corpus(data, seed=0)
    (lock,) = (cache / "corpora").glob("*.lock")
    lock.unlink()
    lock.mkdir()  # no lock can be taken, as on a read-only mount
    assert open_corpus(data, seed=0).digest == made.digest
    with pytest.raises(DataError, match="cannot keep encoded text"):
        other = next((cache / "corpora").glob(f"{made.digest[:32]}"))
        other.rename(cache / "away")
        open_corpus(data, seed=0)


def test_a_home_that_does_not_exist_is_a_sentence() -> None:
    with pytest.raises(DataError, match="data.cache: '~nobody-of-this-name/x'"):
        cache_folder("~nobody-of-this-name/x")
    with pytest.raises(DataError, match="write the whole path"):
        read_tokenizer_file("~nobody-of-this-name/vocab.json")


def test_only_regular_files_are_tokenizers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DataError, match="cannot read the tokenizer file"):
            read_tokenizer_file(str(path))


def test_vocabularies_that_are_none(tmp_path: Path) -> None:
    from muse_core.data.byte_pair import read_files

    (tmp_path / "merges.txt").write_text("")
    for text in ("[1]", '{"a": [1]}', '{"a": true}', '{"a": {}}', "[" * 100_000):
        (tmp_path / "vocab.json").write_text(text)
        with pytest.raises(DataError):
            read_files(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))


@pytest.mark.parametrize("optimizer", [{"use": "adamw", "beta1": 1.0}, {"use": "adamw", "beta2": 1.0},
                                       {"use": "muon", "beta2": 1.0}, {"use": "muon", "momentum": 1.0}])
def test_decays_of_one_are_found_by_the_check(optimizer: dict[str, Any], table: Any, registry: Any) -> None:
    with pytest.raises(RecipeError, match=r"less than 1\.0"):
        check_table(table(train={"optimizer": optimizer}), registry)


def test_no_clipping_is_hinted_at(table: Any, registry: Any) -> None:
    with pytest.raises(RecipeError, match="clip_norm: must be .* as 1e9"):
        check_table(table(train={"clip_norm": 0.0}), registry)


def test_json_of_numbers_that_are_none_is_json() -> None:
    given = {"a": [1.0, float("nan")], "b": (float("inf"), -float("inf"))}
    told = canonical_json.spelled(given)
    assert told == {"a": [1.0, "nan"], "b": ["inf", "-inf"]}
    back = canonical_json.numbers(json.loads(json.dumps(told, allow_nan=False)))
    assert back["b"] == [float("inf"), -float("inf")] and back["a"][1] != back["a"][1]
