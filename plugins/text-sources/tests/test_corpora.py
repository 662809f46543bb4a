"""From a source to encoded splits, as a run opens them."""

import os
import subprocess
import sys

import pytest

from muse_core.data.corpus import open_corpus
from muse_core.errors import DataError
from muse_core.recipe.schema import Data
from muse_core.testing.building import chosen, resolve

SPLITS = ("train", "validation", "canary", "test")


def corpus_of(tmp_path, use, *, tokenizer=None, **options):
    source = resolve("source", use, options)
    data = Data(source=source, tokenizer=tokenizer or chosen("tokenizer", "bytes"), cache=str(tmp_path / "cache"))
    return open_corpus(data, seed=0)


def test_the_default_corpus(tmp_path):
    corpus = corpus_of(tmp_path, "state-of-the-union")
    assert [len(corpus.split(name).starts) for name in SPLITS] == [209, 9, 3, 12]
    assert corpus.vocabulary_size == 257
    assert sum(corpus.split(name).num_bytes for name in SPLITS) == 10_761_159


def test_local_files_with_byte_pairs(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(30):
        text = " ".join(f"{word}{number}" for word in "alpha beta gamma delta epsilon zeta eta theta".split())
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    pairs = chosen("tokenizer", "bpe", vocabulary=300)
    corpus = corpus_of(tmp_path, "files", paths=[str(tmp_path / "texts")], tokenizer=pairs)
    assert corpus.vocabulary_size == 300
    assert len(corpus.split("train").tokens) < corpus.split("train").num_bytes


def test_a_mix_holds_the_documents_of_all(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"line {number}" for number in range(10)))
    files = {"use": "files", "paths": [str(tmp_path / "a.txt")], "documents": "line"}
    corpus = corpus_of(tmp_path, "mix", sources=["state-of-the-union", files])
    assert sum(len(corpus.split(name).starts) for name in SPLITS) == 243


def test_held_out_documents_tell_their_names_and_the_part_of_a_mix(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"line {number}" for number in range(60)))
    files = {"use": "files", "paths": [str(tmp_path / "a.txt")], "documents": "line"}
    inner = {"use": "mix", "sources": [files]}
    corpus = corpus_of(tmp_path, "mix", sources=["state-of-the-union", inner])
    for name in ("validation", "canary", "test"):
        split, told = corpus.split(name), corpus.described[name]
        assert len(told) == len(split.starts)
        for start, one in zip(split.starts, told, strict=True):
            is_line = corpus.tokenizer.decode(split.tokens[start + 1 : start + 6]) == "line "
            assert one["source"] == ("files" if is_line else "state-of-the-union")
            assert one["name"].startswith(str(tmp_path / "a.txt")) == is_line
    assert {one["source"] for one in corpus.described["test"]} == {"files", "state-of-the-union"}


def test_parts_of_a_mix_that_are_of_one_kind_are_told_apart(tmp_path):
    parts = {}
    for part in ("a", "b", "c"):
        (tmp_path / f"{part}.txt").write_text("\n".join(f"{part} line {number}" for number in range(60)))
        parts[part] = {"use": "files", "paths": [str(tmp_path / f"{part}.txt")], "documents": "line"}
    inner = {"use": "mix", "sources": [parts["b"]]}
    corpus = corpus_of(tmp_path, "mix", sources=[parts["a"], inner, parts["c"]])
    told = {(one["source"], os.path.basename(one["name"])[0]) for one in corpus.described["test"]}
    assert told == {("files", "a"), ("files-2", "b"), ("files-3", "c")}


def test_nothing_is_written_outside_the_cache(tmp_path):
    """``datasets`` keeps a cache of its own in the home folder unless it is told otherwise."""
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "line {number}"}}\n' for number in range(10)))
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    program = f"""
from pathlib import Path
from muse_core.recipe.schema import Data
from muse_core.data.corpus import prepare_corpus
from muse_core.data.sources import SourceContext
from muse_text_sources.files import Files
from muse_text_sources.options import FilesOptions
from muse_core.testing.building import chosen
cache = Path({str(cache)!r})
source = Files(FilesOptions(paths=({str(tmp_path / "a.jsonl")!r},)), SourceContext(cache=cache))
prepare_corpus(Data(source=None, tokenizer=chosen("tokenizer", "bytes")), source, seed=0, cache=cache)
"""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    subprocess.run([sys.executable, "-c", program], env={**kept, "HOME": str(home)}, check=True)
    assert not list(home.rglob("*"))
    assert [path.name for path in cache.iterdir()] == ["corpora"]


SHORT = {
    "file": 'Give more files, or cut a long text into documents with data.documents = "paragraph" or "line"',
    "paragraph": 'data.documents is "paragraph" already, and the text has no more empty lines: give more files, or',
    "line": 'data.documents is "line" already, and the text has no more lines: give more files',
}


@pytest.mark.parametrize("documents", SHORT)
@pytest.mark.parametrize("name", ["one.txt", "one.jsonl"])
@pytest.mark.parametrize("mixed", [False, True])
def test_one_text_that_cannot_be_divided_is_told_what_would_help(tmp_path, documents, name, mixed):
    (tmp_path / "one.txt").write_text("word " * 5000)
    (tmp_path / "one.jsonl").write_text('{"text": "' + "word " * 5000 + '"}')
    options = {"paths": [str(tmp_path / name)], "documents": documents}
    with pytest.raises(DataError) as raised:
        if mixed:
            corpus_of(tmp_path, "mix", sources=[{"use": "files", **options}])
        else:
            corpus_of(tmp_path, "files", **options)
    said = str(raised.value)
    assert "the source has 1 document, too few" in said and f"at least 4 are needed. {SHORT[documents]}" in said
    assert said.endswith("A row of a table is one document and is not cut")


def test_few_articles_are_told_what_would_help(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": " = One = "}\n{"text": "of it"}\n')
    with pytest.raises(DataError, match='"article", and the rows have no more headings: give more rows, or "row"'):
        corpus_of(tmp_path, "hub", name=str(tmp_path / "set"), documents="article", split="train")
