"""The text of the probe: where the needle lies, that rows agree in length, that separators are left out."""

import re

import numpy as np
import pytest
from muse_niah_probe.needles import make_needles


class Words:
    """A tokenizer whose tokens have several lengths: digits in pairs, otherwise characters."""

    separator = 0

    def encode(self, text):
        ids, index = [], 0
        while index < len(text):
            pair = text[index : index + 2]
            paired = pair.isdigit() and len(pair) == 2 and int(pair) % 3
            ids.append(1000 + int(pair) if paired else ord(text[index]))
            index += 2 if paired else 1
        return np.array(ids)


class Characters:
    separator = 0

    def encode(self, text):
        return np.array([ord(character) for character in text])

    def decode(self, ids):
        return "".join(chr(one) for one in ids)


def make(tokenizer, *, text=None, rows=6, seed=1):
    text = np.arange(2000, 2400) if text is None else text
    return make_needles(tokenizer, text, rows=rows, lead=20, distance=300, random=np.random.default_rng(seed))


def test_the_answer_stands_in_the_context_once_and_far_from_the_question():
    needles, tokenizer = make(Characters()), Characters()
    distances = []
    for context, question, answer in zip(needles.context, needles.question, needles.answer):
        text, number = tokenizer.decode(context), tokenizer.decode(answer)
        assert number.isdigit() and len(number) == 5
        assert text.count(number) == 1
        distances.append(len(text) - text.index(number) - len(number))
        key = tokenizer.decode(question).split("opens the ")[1].split(" room")[0]
        assert f"The pass code of the {key} room is {number}" in text
    assert min(distances) >= 300 and len(set(distances)) > 1
    assert needles.distance == np.mean(distances)


def test_a_row_has_four_keys_of_which_two_are_asked_for():
    needles, tokenizer = make(Characters()), Characters()
    order = []
    for context, question, other in zip(needles.context, needles.question, needles.other_question):
        text = tokenizer.decode(context)
        keys = re.findall("pass code of the ([a-z]+) room is [0-9]{5}", text)
        asked, another = (tokenizer.decode(one).split("opens the ")[1].split(" room")[0] for one in (question, other))
        assert len(set(keys)) == 4 and asked in keys and another in keys and asked != another
        order.append(keys.index(asked))
    assert len(set(order)) > 1, "the needle asked for is not always the first"


def test_every_row_has_another_key_and_another_number():
    needles = make(Characters(), rows=12)
    assert len({row.tobytes() for row in needles.question}) == 12
    assert len({row.tobytes() for row in needles.answer}) == 12


def test_rows_have_equal_lengths_whatever_the_tokenizer():
    needles = make(Words(), rows=8)
    assert needles.context.shape[0] == needles.question.shape[0] == needles.answer.shape[0] == 8


def test_a_seed_gives_the_same_needles():
    for one, other in zip(make(Characters()), make(Characters())):
        assert np.array_equal(one, other)
    assert not np.array_equal(make(Characters(), seed=2).answer, make(Characters()).answer)


def test_separators_are_left_out_and_short_text_is_repeated():
    needles = make(Characters(), text=np.array([0, 5000, 0, 5001, 5002]))
    assert 0 not in needles.context
    assert (np.isin(needles.context, [5000, 5001, 5002]).sum(1) == 320).all()


def test_no_text_is_an_error():
    with pytest.raises(ValueError, match="held-out text"):
        make(Characters(), text=np.array([0, 0]))
