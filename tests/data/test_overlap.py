"""Documents that share text stay in one split, and what still stands in training text is measured exactly."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.data import overlap


def text(seed, length=2000):
    return bytes(random.Random(seed).choices(b"abcdefghijklmnopqrstuvwxyz ", k=length))


def grouped(*texts):
    data = [np.frombuffer(one, dtype=np.uint8) for one in texts]
    return overlap.group(data.__getitem__, [len(one) for one in data]).tolist()


def share(held_out, train, sets=None):
    """Of all held-out texts, or of each set of their numbers."""
    data = [np.frombuffer(one, dtype=np.uint8) for one in (*held_out, *train)]
    asked = sets or {"all": range(len(held_out))}
    found = overlap.shared_bytes(data.__getitem__, asked, range(len(held_out), len(data)))
    return found if sets else found["all"]


def by_hand(held_out, train):
    """The same, by Python's own search."""
    strings = {one[begin : begin + 64] for one in train for begin in range(len(one) - 63)}
    covered = 0
    for one in held_out:
        if len(one) < 64:
            covered += len(one) * (one in train)
            continue
        marks = [False] * len(one)
        for begin in range(len(one) - 63):
            if one[begin : begin + 64] in strings:
                marks[begin : begin + 64] = [True] * 64
        covered += sum(marks)
    return covered / sum(map(len, held_out))


def test_copies_and_quotations_are_together_and_others_apart():
    whole, other = text(1, 9000), text(2)
    quotation = whole[3000:3400] + text(3, 600)  # 337 of 937 strings, while Jaccard's similarity is 3.5 %
    passing = whole[5000:5100] + text(4, 1900)  # 37 of 1,937
    assert grouped(other, whole, quotation, passing, whole, text(5)) == [0, 1, 1, 3, 1, 5]


def test_likeness_goes_from_document_to_document():
    a, b, c = text(1, 1000), text(2, 1000), text(3, 1000)
    assert grouped(a, c, a[:500] + b[:500], b[500:] + c[:500]) == [0, 1, 0, 1]
    assert grouped(a, a[:500] + b[:500], b, c) == [0, 0, 0, 3]


def test_many_copies_are_one_group_and_a_common_licence_makes_none():
    licence = text(9, 120)
    documents = [licence + text(100 + number) for number in range(40)]
    assert grouped(*documents) == list(range(40))
    assert grouped(*[text(1)] * 40, text(2)) == [0] * 40 + [40]


def test_short_and_empty_documents_are_alone():
    assert grouped(b"", b"short", b"short", text(1, 63), text(1, 63)) == [0, 1, 2, 3, 4]
    assert grouped() == []
    assert share([], []) == share([b""], [b""]) == 0.0


def test_a_held_out_document_shorter_than_a_string_is_seen_where_training_text_has_it_as_a_document():
    assert share([b"", b"short", b"another"], [b"short", b"an"]) == 5 / 12
    assert share([b"short"], [b"short" + text(1)]) == 0.0  # five letters stand in any long text
    assert share([text(1, 63)], [text(1, 63)]) == share([text(1, 64)], [text(1, 64)]) == 1.0
    assert share([b"short", text(1)], [b"short", text(1)]) == 1.0
    assert share([b"one", b"two"], [b"two"], {"first": [0], "second": [1]}) == {"first": 0.0, "second": 1.0}


def test_bytes_are_counted_of_short_documents_too_where_a_large_set_is_cut(monkeypatch):
    monkeypatch.setattr(overlap, "MOST_MEASURED", 10)
    assert share([b"short", b"other", b"third"], [b"third"]) == 0.0
    assert share([b"shor", b"other", b"third"], [b"third"]) == 5 / 14


PIECES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 300) | st.just(7), st.integers(1, 200) | st.just(5)),
    min_size=1, max_size=8,
)


@settings(max_examples=30, deadline=None)
@given(PIECES, st.data())
def test_the_share_is_that_of_a_search_by_hand(pieces, draw):
    sources = [text(seed, 500) for seed in range(4)]
    texts = [sources[which][begin : begin + length] for which, begin, length in pieces]
    cut = draw.draw(st.integers(1, len(texts)))
    found = share(texts[:cut], texts[cut:], {"all": range(cut), "last": [cut - 1], "none": []})
    whole, last = by_hand(texts[:cut], texts[cut:]), by_hand(texts[cut - 1 : cut], texts[cut:])
    assert found == {"all": whole, "last": last, "none": 0.0}


def test_blocks_and_the_end_of_a_document_are_no_border(monkeypatch):
    whole = text(1, 1000)
    monkeypatch.setattr(overlap, "BLOCK", 100)
    assert share([whole[50:950]], [whole]) == share([whole], [whole]) == 1.0
    assert grouped(whole, whole[500:]) == [0, 0]


def test_a_large_corpus_is_grouped_by_part_of_its_strings(monkeypatch):
    monkeypatch.setattr(overlap, "MOST_KEPT", 1000)
    assert grouped(text(1), text(2), text(1)[:1000], text(3)) == [0, 1, 0, 3]


def divided(corpus):
    names = ("train", "validation", "canary", "test")
    found = {}
    for name in names:
        split = corpus.split(name)
        for begin, end in zip(split.starts, [*split.starts[1:], len(split.tokens) - 1]):
            found[corpus.tokenizer.decode(split.tokens[begin + 1 : end])] = name
    return found


FAMILIES = [text(seed).decode() for seed in range(40)]
COPIES = [*FAMILIES, *(one[:1500] + f" copy {number}" for number, one in enumerate(FAMILIES[:20]))]


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_stay_in_one_split_of_a_corpus(make_corpus, tmp_path, seed):
    corpus = make_corpus(COPIES, seed=seed, validation=0.2, test=0.2, cache=tmp_path)
    where = divided(corpus)
    assert len(where) == 60
    for number in range(20):
        one, other = where[COPIES[number]], where[COPIES[40 + number]]
        assert one == other or {one, other} == {"validation", "canary"}
    assert corpus.in_training == {"validation": 0.0, "test": 0.0} and not corpus.notices
    assert [list(where.values()).count(name) for name in ("train", "test")] == [36, 12]


def test_apart_they_are_divided_one_by_one_and_the_share_says_so(make_corpus, tmp_path):
    together = make_corpus(COPIES, validation=0.2, test=0.2, cache=tmp_path)
    apart = make_corpus(COPIES, validation=0.2, test=0.2, near_duplicates="apart", cache=tmp_path)
    assert apart.digest != together.digest
    train, test = (
        [one.encode() for one, split in divided(apart).items() if split == name] for name in ("train", "test")
    )
    assert apart.in_training["test"] == by_hand(test, train) > 0.1


def test_documents_that_share_nothing_are_divided_as_without_the_option(make_corpus, tmp_path):
    one = make_corpus(FAMILIES, cache=tmp_path)
    assert divided(one) == divided(make_corpus(FAMILIES, near_duplicates="apart", cache=tmp_path))


def test_text_that_is_all_alike_is_divided_with_a_notice(make_corpus, tmp_path):
    alike = [text(1).decode() + f" {number}" for number in range(40)]
    corpus = make_corpus(alike, cache=tmp_path)
    assert corpus.in_training["test"] > 0.9
    assert any("test text shares much with training text" in notice for notice in corpus.notices)
    some = make_corpus([*alike, *FAMILIES[:3]], validation=0.1, test=0.1, cache=tmp_path)
    assert any("instead of 4: the others are so alike" in notice for notice in some.notices), some.notices


def test_held_out_text_of_one_kind_that_is_not_trained_on_is_told(make_corpus, tmp_path):
    kind = [FAMILIES[0] + f" copy {number}" for number in range(3)]
    told = {}
    for seed in range(12):
        corpus = make_corpus([*FAMILIES, *kind], seed=seed, validation=0.15, test=0.15, cache=tmp_path)
        where = {each: split for each, split in divided(corpus).items() if each in (FAMILIES[0], *kind)}
        told[seed] = (set(where.values()), [notice for notice in corpus.notices if "data.split_seed" in notice])
    assert {"test"} in [splits for splits, _ in told.values()] and {"train"} in [splits for splits, _ in told.values()]
    for splits, notices in told.values():
        held_out = "test" if splits == {"test"} else "validation" if "train" not in splits else None
        assert len(notices) == (held_out is not None), (splits, notices)
        for notice in notices:
            assert f"documents of the {held_out} text" in notice and re.search(r"the first is text (0|4\d)\)", notice)
