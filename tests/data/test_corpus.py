"""A corpus is divided by document before anything learns from it, encoded once, and never read back damaged."""

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.data.batches import evaluation_batches
from muse_core.data.corpus import prepare_corpus
from muse_core.data.documents import SPLITS
from muse_core.data.sources import cache_folder
from muse_core.data.token_files import Unusable, read_header
from muse_core.errors import DataError
from muse_core.recipe.schema import Data
from muse_core.testing.building import chosen

WORDS = (
    "the quick brown fox jumps over a lazy dog, packs my box with five dozen liquor jugs and vexes sphinxes of quartz"
)
FORTY = [f"document {number}: " + WORDS[: 20 + 17 * number % 90] for number in range(40)]
any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def documents(corpus, name):
    """The texts of a split, taken apart at the separators."""
    split = corpus.split(name)
    ends = [*split.starts[1:], len(split.tokens) - 1]
    assert (split.tokens[split.starts] == split.separator).all() and split.tokens[-1] == split.separator
    return [corpus.tokenizer.decode(split.tokens[a + 1 : b]) for a, b in zip(split.starts, ends, strict=True)]


def test_every_document_is_in_one_split(make_corpus):
    corpus = make_corpus(FORTY)
    divided = {name: documents(corpus, name) for name in SPLITS}
    assert sorted(sum(divided.values(), [])) == sorted(FORTY)
    assert {name: len(texts) for name, texts in divided.items()} == {
        "train": 36,
        "validation": 1,
        "canary": 1,
        "test": 2,
    }


def test_shares_are_the_recipes(make_corpus):
    corpus = make_corpus(FORTY, validation=0.25, test=0.2)
    counts = [len(corpus.split(name).starts) for name in ("train", "validation", "canary", "test")]
    assert counts == [40 - 10 - 8, 8, 2, 8]


def test_the_seed_decides_what_is_held_out(make_corpus):
    held_out = [documents(make_corpus(FORTY, seed=seed), "test") for seed in (0, 1, 0)]
    assert held_out[0] == held_out[2] != held_out[1]


def test_training_documents_are_shuffled(make_corpus):
    train = documents(make_corpus(FORTY), "train")
    assert train != sorted(train, key=FORTY.index)


def test_splits_of_the_source_stay(make_corpus):
    splits = ["test"] * 10 + ["train"] * 30
    corpus = make_corpus(FORTY, splits=splits)
    assert sorted(documents(corpus, "test")) == sorted(FORTY[:10])
    rest = sum((documents(corpus, name) for name in ("train", "validation", "canary")), [])
    assert sorted(rest) == sorted(FORTY[10:])


def test_a_tokenizer_learns_from_training_text_alone(make_corpus):
    """Documents that change places between train and held-out text change the tokenizer; held-out text does not."""
    splits = ["train"] * 30 + ["validation"] * 5 + ["test"] * 5
    tokenizer = chosen("tokenizer", "bpe", vocabulary=300)
    one = make_corpus(FORTY, splits=splits, tokenizer=tokenizer)
    other = make_corpus(FORTY[:30] + [WORDS[::-1]] * 10, splits=splits, tokenizer=tokenizer)
    learned = make_corpus([WORDS[::-1]] * 30 + FORTY[:10], splits=splits, tokenizer=tokenizer)
    assert one.tokenizer.digest == other.tokenizer.digest != learned.tokenizer.digest


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(any_text, min_size=4, max_size=12), bpe=st.booleans(), length=st.integers(1, 40))
def test_labels_of_a_split_count_its_bytes_exactly(make_corpus, trained_on_anything, texts, bpe, length):
    corpus = make_corpus(texts, tokenizer=trained_on_anything if bpe else None)
    for name in SPLITS:
        size = sum(len(text.encode()) for text in documents(corpus, name))
        batches = evaluation_batches(corpus.split(name), sequence_length=length, batch_size=3)
        loss_mask = sum(int(corpus.byte_lengths[batch.labels[batch.loss_mask].numpy()].sum()) for batch in batches)
        assert loss_mask == size == corpus.split(name).num_bytes


@pytest.fixture(scope="module")
def trained_on_anything(tmp_path_factory):
    """GPT-2 files with the 256 bytes and a few merges, which any text may use."""
    from muse_core.data.byte_pair import byte_characters

    folder = tmp_path_factory.mktemp("tokenizer")
    merges = [("0", "0"), ("00", "0"), ("Ġ", "Ġ"), ("Ã", "¿")]
    tokens = [*byte_characters(), *("".join(pair) for pair in merges)]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges))
    return chosen("tokenizer", "gpt2", vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "the source has no document"),
        (["", ""], "its 2 documents are empty, or without a value in the column, the first of them text 0"),
        (["one"], "has 1 document, too few"),
        (["a", "b", "c"], "has 3 documents, too few"),
        (["fine", "lone surrogate \ud800", "c", "d"], "text 1 is not valid Unicode"),
    ],
)
def test_unusable_text_is_refused_in_a_sentence(make_corpus, tmp_path, texts, said):
    with pytest.raises(DataError, match=said):
        make_corpus(texts, cache=tmp_path)
    assert not [path for path in (tmp_path / "corpora").iterdir() if path.suffix != ".lock"], "something was left"


def test_an_unknown_split_of_a_source_is_refused(make_corpus):
    with pytest.raises(DataError, match="text 2 belongs to split 'dev'"):
        make_corpus(FORTY, splits=["train", "test", "dev"] + [None] * 37)


def test_four_documents_are_enough(make_corpus):
    corpus = make_corpus(["a", "b", "c", "d"])
    assert [len(corpus.split(name).starts) for name in SPLITS] == [1, 1, 1, 1]


def only_folder(cache):
    return next(path for path in (cache / "corpora").iterdir() if path.is_dir())


def test_text_is_encoded_once(make_corpus, tmp_path):
    calls = []
    make_corpus(FORTY, cache=tmp_path, report=lambda *what: calls.append(what))
    assert ("reading documents", 40, 40) in calls and ("encoding train", 36, 36) in calls
    calls.clear()
    again = make_corpus(FORTY, cache=tmp_path, report=lambda *what: calls.append(what))
    assert not calls and not again.notices
    assert isinstance(again.split("train").tokens, np.memmap) and again.split("train").tokens.dtype == np.uint16


def test_whatever_the_encoding_depends_on_names_the_cache(make_corpus, tmp_path):
    variants = [
        {},
        {"seed": 1},
        {"validation": 0.1},
        {"test": 0.1},
        {"tokenizer": chosen("tokenizer", "bpe", vocabulary=300)},
        {"splits": ["train"] + [None] * 39},
    ]
    digests = [make_corpus(FORTY, cache=tmp_path, **variant).digest for variant in variants]
    assert len(set(digests)) == len(variants)


@pytest.mark.parametrize("name", ["train.tokens", "train.starts", "test.tokens", "tokenizer.json", "header.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "grow"])
def test_damaged_files_are_made_anew_with_a_notice(make_corpus, tmp_path, name, damage):
    whole = make_corpus(FORTY, cache=tmp_path)
    expected = {split: np.array(whole.split(split).tokens) for split in SPLITS}
    path = only_folder(tmp_path) / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 4
        changed = {"flip": content, "truncate": content[:-1], "grow": path.read_bytes() + b"x"}[damage]
        path.write_bytes(changed)
    again = make_corpus(FORTY, cache=tmp_path)
    assert len(again.notices) == 1 and "made anew" in again.notices[0]
    assert all(np.array_equal(again.split(split).tokens, expected[split]) for split in SPLITS)
    assert not make_corpus(FORTY, cache=tmp_path).notices


def test_names_are_kept_of_what_is_held_out_and_damage_to_them_is_seen(make_corpus, tmp_path):
    corpus = make_corpus(FORTY, cache=tmp_path)
    for name in ("validation", "canary", "test"):
        assert [one["name"] for one in corpus.described[name]] == [
            f"text {FORTY.index(text)}" for text in documents(corpus, name)
        ]
    assert "train" not in corpus.described
    (only_folder(tmp_path) / "test.documents.json").write_text("[]")
    assert "made anew" in make_corpus(FORTY, cache=tmp_path).notices[0]


def test_text_encoded_by_an_earlier_version_is_read_without_names(make_corpus, tmp_path):
    make_corpus(FORTY, cache=tmp_path)
    folder = only_folder(tmp_path)
    header = json.loads(json.loads((folder / "header.json").read_text())["header"])
    for name in [name for name in header["files"] if name.endswith(".documents.json")]:
        del header["files"][name]
        (folder / name).unlink()
    body = json.dumps(header)
    digest = hashlib.sha256(body.encode()).hexdigest()
    (folder / "header.json").write_text(json.dumps({"sha256": digest, "header": body}))
    again = make_corpus(FORTY, cache=tmp_path)
    assert not again.notices and set(again.described.values()) == {None}


def test_every_bit_of_the_header_counts(make_corpus, tmp_path):
    make_corpus(FORTY, cache=tmp_path)
    folder = only_folder(tmp_path)
    header = (folder / "header.json").read_bytes()
    assert read_header(folder)["splits"]["train"]["documents"] == 36
    for place in range(len(header)):
        damaged = bytearray(header)
        damaged[place] ^= 1 << place % 7
        (folder / "header.json").write_bytes(damaged)
        with pytest.raises(Unusable):
            read_header(folder)


def test_another_corpus_under_the_same_name_is_not_taken(make_corpus, tmp_path):
    make_corpus(FORTY, cache=tmp_path / "one")
    make_corpus(FORTY, seed=1, cache=tmp_path / "two")
    target = only_folder(tmp_path / "two")
    shutil.rmtree(target)
    only_folder(tmp_path / "one").rename(target)
    assert "holds another corpus" in make_corpus(FORTY, seed=1, cache=tmp_path / "two").notices[0]


def test_leftovers_of_a_killed_encoding_are_removed(make_corpus, tmp_path):
    make_corpus(FORTY, cache=tmp_path)
    folder = only_folder(tmp_path)
    leftover = folder.with_name(f"{folder.name}.tmp-abc")
    folder.rename(leftover)
    make_corpus(FORTY, cache=tmp_path)
    assert folder.exists() and not leftover.exists()


def test_two_at_once_encode_once(make_corpus, tmp_path):
    calls, corpora = [], []
    work = lambda: corpora.append(make_corpus(FORTY, cache=tmp_path, report=lambda *what: calls.append(what)))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(corpora) == 4 and calls.count(("reading documents", 40, 40)) == 1


def test_a_cache_that_cannot_be_written_is_a_sentence(make_corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot keep encoded text there .*: .*MUSE_CACHE"):
        make_corpus(FORTY, cache=tmp_path / "file" / "cache")


def test_the_cache_folder_follows_recipe_then_variables(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("MUSE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(cache_folder()) == "/home/someone/.cache/muse"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert str(cache_folder()) == "/caches/muse"
    monkeypatch.setenv("MUSE_CACHE", "~/elsewhere")
    assert str(cache_folder()) == "/home/someone/elsewhere"
    assert str(cache_folder("here")) == "here"


def test_encoding_needs_no_torch():
    program = "import sys, muse_core.data.corpus; print('torch' in sys.modules)"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_f10_documents_without_text_are_counted_whenever_the_corpus_is_opened(make_corpus, tmp_path):
    for _ in range(2):
        notices = make_corpus(["", *FORTY, "", ""], cache=tmp_path).notices
        assert any(
            notice.startswith("3 of 43 documents have no text") and notice.endswith("the first of them text 0")
            for notice in notices
        ), notices


@pytest.mark.parametrize("gone", ["digest", "dtype", "separator", "splits", "in_training", "notices"])
def test_a8_a_header_without_a_field_is_made_anew_with_a_notice(make_corpus, tmp_path, gone):
    make_corpus(FORTY, cache=tmp_path)
    path = only_folder(tmp_path) / "header.json"
    header = json.loads(json.loads(path.read_text())["header"])
    del header[gone]
    body = json.dumps(header)
    path.write_text(json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "header": body}))
    assert "made anew" in make_corpus(FORTY, cache=tmp_path).notices[0]
    assert not [notice for notice in make_corpus(FORTY, cache=tmp_path).notices if "anew" in notice]


def test_a15_text_that_changes_while_it_is_read_is_refused(texts_source, tmp_path):
    class Changing(texts_source):
        read = False

        def documents(self):
            yield from super().documents()
            type(self).read = True

        def fingerprint(self):
            return super().fingerprint() + str(self.read)

    with pytest.raises(DataError, match="the text changed while it was being read: start again"):
        data = Data(source=None, tokenizer=chosen("tokenizer", "bytes"))
        prepare_corpus(data, Changing(FORTY, ()), seed=0, cache=tmp_path)
    assert not [path for path in (tmp_path / "corpora").iterdir() if path.suffix != ".lock"]


def test_f18_encoded_text_is_opened_where_nothing_may_be_written(make_corpus, tmp_path, monkeypatch):
    """Root may write anywhere, so the lock refuses as on a file system that is mounted to be read."""
    whole = make_corpus(FORTY, cache=tmp_path)

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(filelock, "FileLock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    again = make_corpus(FORTY, cache=tmp_path)
    assert np.array_equal(again.split("train").tokens, whole.split("train").tokens)
    with pytest.raises(DataError, match="cannot keep encoded text there .*Read-only file system"):
        make_corpus(FORTY, seed=5, cache=tmp_path)


@pytest.mark.parametrize(("splits", "said"), [
    (["test"] * 11 + ["validation"], r"puts its 12 documents into splits itself \(1 in validation, 11 in test\)"),
    (["train"] * 6 + ["test"] * 5 + ["validation"], r"leaves too few for validation \(two or more\)"),
])
def test_a25_what_the_source_divided_itself_is_said_so(make_corpus, tmp_path, splits, said):
    with pytest.raises(DataError, match=said) as refused:
        make_corpus([f"document {number}" for number in range(12)], splits=splits, cache=tmp_path)
    assert "at least 4" not in str(refused.value)


def test_a25_too_many_open_files_say_nothing_about_the_encoded_text(make_corpus, tmp_path):
    make_corpus(FORTY, cache=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
        try:
            with pytest.raises(DataError, match=r"Too many open files - .*ulimit -n"):
                make_corpus(FORTY, cache=tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not [notice for notice in make_corpus(FORTY, cache=tmp_path).notices if "anew" in notice]
