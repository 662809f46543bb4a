"""WikiText by a local folder of its schema: articles put together, and perplexity by word."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from muse_text_sources.articles import articles

import muse_core
from muse_core.testing import build_component

FIRST = [" = Valkyria Chronicles = \n", "", " Senjō no Valkyria 3 : <unk> @-@ Chronicles is a game . \n", "",
         " = = Gameplay = = \n", "", " It is played . \n", " = 2 + 2 is no heading = \n", ""]
SECOND = [" = Tower Building = \n", "", " The Tower Building was built in 1840 . \n", ""]


def words_of(rows: list[str]) -> int:
    """As the papers count: words, and an end for each line."""
    return sum(len(row.split()) + 1 for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "wikitext"
    path.mkdir()
    splits = {"train": ["", *FIRST, *SECOND] * 20, "validation": [*SECOND, *FIRST], "test": [*FIRST, *SECOND]}
    for split, rows in splits.items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def test_rows_become_articles_with_every_line(folder: Path) -> None:
    source = build_component("source", "hub", name=str(folder), documents="article")
    documents = [one for one in source.documents() if one.split == "test"]
    assert [one.text.splitlines()[0] for one in documents] == [" = Valkyria Chronicles = ", " = Tower Building = "]
    for one, rows in zip(documents, (FIRST, SECOND), strict=True):
        assert one.text == "".join(row or "\n" for row in rows)
        assert len(one.text.split()) + one.text.count("\n") == words_of(rows)
    assert documents[1].name.endswith(f"test row {len(FIRST)}")


def test_articles_are_counted_by_the_limit_and_told_apart_by_the_fingerprint(folder: Path) -> None:
    source = build_component("source", "hub", name=str(folder), documents="article", limit=1)
    assert sorted(str(one.split) for one in source.documents()) == ["test", "train", "validation"]
    by_row = build_component("source", "hub", name=str(folder))
    assert by_row.fingerprint() != build_component("source", "hub", name=str(folder), documents="article").fingerprint()


def test_empty_rows_before_the_first_heading_go_with_it_and_nothing_is_lost() -> None:
    rows = [(str(number), text) for number, text in enumerate(["", *FIRST, *SECOND])]
    found = list(articles(rows))
    assert [name for name, _ in found] == ["0", str(1 + len(FIRST))]
    assert "".join(text for _, text in found) == "".join(row or "\n" for _, row in rows)
    assert list(articles([])) == []


def test_perplexity_by_word_is_that_of_the_bits_of_the_whole_test_split(folder: Path, tmp_path: Path) -> None:
    table = {
        "name": "words", "data": {"use": "hub", "name": str(folder), "documents": "article"},
        "model": {"width": 16, "depth": 1, "block": [{"use": "feed-forward"}]},
        "train": {"steps": 3, "sequence_length": 32, "batch_size": 4, "warmup_steps": 1},
        "evaluate": {"split": "test", "tokens": 64, "final_tokens": 10_000},
    }
    opened = muse_core.train(table, run_dir=tmp_path / "run", quiet=True)
    (row,) = opened.evaluate("held-out", tokens=10_000_000)
    text = "".join(one or "\n" for one in [*FIRST, *SECOND])
    assert row["bytes"] == len(text.encode()) and row["words"] == words_of([*FIRST, *SECOND])
    bits = row["bits_per_byte"] * row["bytes"]
    assert row["word_perplexity"] == pytest.approx(2 ** (bits / row["words"]), rel=1e-9)
    assert math.isfinite(row["word_perplexity"]) and row["word_perplexity"] > row["perplexity"]
