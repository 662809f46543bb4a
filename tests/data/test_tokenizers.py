"""Tokenizers lose nothing, and their byte lengths count every byte once."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.data.byte_pair import byte_characters
from muse_core.data.tokenizers import from_json, identity, make_tokenizer
from muse_core.errors import DataError
from muse_core.testing.building import chosen

TEXTS = ["The quick brown fox jumps over the lazy dog. <|endoftext|>\n", "Größe, naïve, 日本語, 🦊🦊! " * 3] * 4
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.sampled_from([*TEXTS, "<|endoftext|>", "  ", "\r\n", "\x00", "🦊"])).map("".join),
)


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory):
    """GPT-2's file format with a few merges."""
    folder = tmp_path_factory.mktemp("gpt2")
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("q", "u")]
    tokens = [*sorted(byte_characters()), *("".join(merge) for merge in merges), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return files_in(folder)


def files_in(folder):
    return chosen("tokenizer", "gpt2", vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.fixture(scope="module", params=["bytes", "bpe", "gpt2"])
def tokenizer(request, gpt2_files):
    plain, pairs = chosen("tokenizer", "bytes"), chosen("tokenizer", "bpe", vocabulary=300)
    return make_tokenizer({"bytes": plain, "bpe": pairs, "gpt2": gpt2_files}[request.param], TEXTS)


@settings(deadline=None)
@given(text=texts)
def test_decoding_gives_back_every_byte(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


@settings(deadline=None)
@given(text=texts)
def test_byte_lengths_add_up_to_the_text(tokenizer, text):
    assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode())


@settings(deadline=None)
@given(text=texts)
def test_text_never_holds_the_separator(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.separator not in ids
    assert ((0 <= ids) & (ids < tokenizer.vocabulary_size)).all()


def test_the_separator_stands_for_no_text(tokenizer):
    assert tokenizer.byte_lengths[tokenizer.separator] == 0
    assert tokenizer.byte_lengths.shape == (tokenizer.vocabulary_size,)
    assert (np.delete(tokenizer.byte_lengths, tokenizer.separator) > 0).all()


def test_a_tokenizer_survives_its_description(tokenizer):
    again = from_json(tokenizer.to_json())
    assert again.digest == tokenizer.digest
    assert (again.vocabulary_size, again.separator) == (tokenizer.vocabulary_size, tokenizer.separator)
    assert all(np.array_equal(again.encode(text), tokenizer.encode(text)) for text in TEXTS)


def test_half_a_character_decodes_to_a_replacement():
    fox = make_tokenizer(chosen("tokenizer", "bytes"), ()).encode("🦊")
    assert make_tokenizer(chosen("tokenizer", "bytes"), ()).decode(fox[:2]) == "\ufffd"


def test_byte_pairs_are_learned_and_counted_with_the_separator():
    tokenizer = make_tokenizer(chosen("tokenizer", "bpe", vocabulary=300), TEXTS)
    assert tokenizer.vocabulary_size == 300
    assert len(tokenizer.encode(TEXTS[0])) < 0.75 * len(TEXTS[0])
    assert repr(tokenizer) == f"<BytePairTokenizer: 300 tokens, separator {tokenizer.separator}>"


def test_byte_pairs_are_the_same_in_another_process():
    """The library's hash tables are seeded anew by every process."""
    program = (
        "import sys, json; from muse_core.data.byte_pair import train;"
        "print(train(300, json.loads(sys.argv[1])).digest)"
    )
    command = [sys.executable, "-c", program, json.dumps(TEXTS)]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert make_tokenizer(chosen("tokenizer", "bpe", vocabulary=300), TEXTS).digest == other


def test_merges_of_local_files_apply(gpt2_files):
    tokenizer = make_tokenizer(gpt2_files, ())
    assert [tokenizer.pieces[index] for index in tokenizer.encode("the then")] == [b"the", b" the", b"n"]
    assert tokenizer.pieces[tokenizer.separator] == b""
    assert tokenizer.vocabulary_size == 256 + 4 + 1


def test_what_decides_a_tokenizer_is_named(gpt2_files, tmp_path):
    other = tmp_path / "merges.txt"
    other.write_text("t h\n")
    options = [
        chosen("tokenizer", "bytes"),
        chosen("tokenizer", "bpe", vocabulary=300),
        chosen("tokenizer", "bpe", vocabulary=301),
        gpt2_files,
        chosen("tokenizer", "gpt2", vocab=gpt2_files.options.vocab, merges=str(other)),
    ]
    assert len({identity(one) for one in options}) == len(options)


def test_too_little_text_for_the_vocabulary_is_refused_with_what_it_supports():
    with pytest.raises(DataError, match=r"supports only (\d+) of 5000") as refused:
        make_tokenizer(chosen("tokenizer", "bpe", vocabulary=5000), TEXTS)
    supported = int(str(refused.value).split("vocabulary to ")[1].split(" ")[0])
    assert make_tokenizer(chosen("tokenizer", "bpe", vocabulary=supported), TEXTS).vocabulary_size == supported


@pytest.mark.parametrize(
    ("vocab", "merges", "said"),
    [
        (None, "", "cannot read the tokenizer file"),
        ("{", "", "not JSON"),
        ("[1]", "", "not a table of tokens"),
        ('{"a": 0, "b": 2}', "", "not a table of tokens"),
        ('{"a": 0}', "", "255 of the 256 byte tokens are missing"),
        ("bytes and a space", "", "token 'a b' is not made of bytes"),
        ("bytes", "x y", "merge 'x y' does not fit"),
        ("bytes", "x", "merge 'x' does not fit"),
    ],
)
def test_wrong_files_are_refused_in_a_sentence(tmp_path, vocab, merges, said):
    tokens = byte_characters() + (["a b"] if vocab == "bytes and a space" else [])
    if vocab is not None:
        content = json.dumps({token: n for n, token in enumerate(tokens)}) if vocab.startswith("bytes") else vocab
        (tmp_path / "vocab.json").write_text(content)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(DataError, match=said) as refused:
        make_tokenizer(files_in(tmp_path), ())
    assert str(tmp_path) in str(refused.value)


def test_f26_advice_is_within_what_the_option_allows():
    with pytest.raises(DataError, match='supports only 259 of 300 .*: set data.tokenizer to "bytes", or give more'):
        make_tokenizer(chosen("tokenizer", "bpe", vocabulary=300), ["aaa", "aa"])
    many = [f"{word}{word}" for word in ("abcdefgh", "ijklmnop", "qrstuvwx", "ABCDEFGH", "IJKLMNOP", "QRSTUVWX")]
    with pytest.raises(DataError, match=r"supports only 3\d\d of 9999 .*: set data.tokenizer.vocabulary to 3\d\d or"):
        make_tokenizer(chosen("tokenizer", "bpe", vocabulary=9999), many)


@pytest.mark.timeout(60)
def test_f26_unbroken_text_takes_time_in_proportion():
    """A million letters took more than three minutes, four million a quarter of an hour."""
    dna = "".join(random.Random(0).choices("ACGT", k=1_000_000))
    tokenizer = make_tokenizer(chosen("tokenizer", "bpe", vocabulary=320), [dna])
    assert tokenizer.decode(tokenizer.encode(dna)) == dna


def test_f26_words_of_ordinary_length_are_learned_from_whole():
    from tokenizers import models, trainers

    from muse_core.data import byte_pair

    texts = ["hello " * 40 + "x" * (byte_pair.LONGEST_WORD - 1) + " world, 12 345", "eine Straße, naïve 東京 " * 9]
    plain = byte_pair._byte_level(models.BPE())
    alphabet = sorted(byte_pair.byte_characters())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    plain.train_from_iterator(texts, trainer)
    learned = make_tokenizer(chosen("tokenizer", "bpe", vocabulary=301), texts)
    assert json.loads(learned.to_json())["model"] == json.loads(plain.to_str())


@pytest.mark.parametrize("content", ['{"a": [1]}', '{"a": "0"}', "[" * 100_000, '{"a": true}', "\0"])
def test_a18_files_that_are_no_vocabulary_are_sentences(tmp_path, content):
    (tmp_path / "vocab.json").write_text(content)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(DataError, match=r"vocab\.json: .*give GPT-2's vocab\.json"):
        make_tokenizer(files_in(tmp_path), [])


def test_a18_tokenizer_files_that_are_pipes_or_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero", str(tmp_path)):
        with pytest.raises(DataError, match="cannot read the tokenizer file"):
            make_tokenizer(chosen("tokenizer", "gpt2", vocab=path, merges=path), [])


def written(folder: Path, **changed: object) -> Path:
    """A directory with the tokenizer.json of a byte-level encoding that was trained here, with special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    learned = make_tokenizer(chosen("tokenizer", "bpe", vocabulary=300), TEXTS)
    table = json.loads(learned.to_json())["model"]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    table["added_tokens"] = [
        {"id": 299, "content": "<|eot|>"} | special, {"id": 300, "content": "<|endoftext|>"} | special,
        {"id": 301, "content": "fox trot"} | special | {"special": False},
    ]
    (folder / "tokenizer.json").write_text(json.dumps(table | changed))
    return folder


def test_a_tokenizer_file_gives_text_back_and_its_special_tokens_are_no_text(tmp_path: Path) -> None:
    folder = written(tmp_path / "hf")
    tokenizer = make_tokenizer(chosen("tokenizer", "file", path=str(folder)), ())
    assert tokenizer.separator == 300 and tokenizer.vocabulary_size == 302
    text = "a fox trot <|endoftext|> ☃ 🦊<|eot|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and 301 in ids and not {299, 300} & set(ids.tolist())
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    again = from_json(tokenizer.to_json())
    assert again.digest == tokenizer.digest and again.encode(text).tolist() == ids.tolist()
    same = make_tokenizer(chosen("tokenizer", "file", path=str(folder / "tokenizer.json"), separator="<|eot|>"), ())
    assert same.separator == 299


def test_the_separator_of_a_directory_is_its_end_of_text(tmp_path: Path) -> None:
    folder = written(tmp_path / "hf")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|eot|>"}}))
    assert make_tokenizer(chosen("tokenizer", "file", path=str(folder)), ()).separator == 299
    without = written(tmp_path / "plain", added_tokens=[])
    assert make_tokenizer(chosen("tokenizer", "file", path=str(without)), ()).separator == 299


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"normalizer": {"type": "NFC"}}, "does not give text back byte for byte"),
        ({"normalizer": {"type": "Lowercase"}}, "does not give text back byte for byte"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
         "does not give text back byte for byte"),
        ({"decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
         "its decoder is Metaspace"),
        ({"decoder": None}, "its decoder is missing"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "holds no byte-pair model"),
        ({"pre_tokenizer": {"type": "NoSuchThing"}}, "cannot read it"),
        ({"added_tokens": [{"id": 500, "content": "<|eot|>", "special": True, "single_word": False, "lstrip": False,
                            "rstrip": False, "normalized": False}]}, "has number 500, and .* reads it as 299"),
    ],
)
def test_a_tokenizer_file_that_changes_text_is_refused(
    tmp_path: Path, changed: dict[str, object], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        make_tokenizer(chosen("tokenizer", "file", path=str(written(tmp_path, **changed))), ())


def test_a_separator_that_is_none_and_files_that_are_none_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'nope' is no special token of it; there are '<|eot|>'".replace("|", r"\|")):
        make_tokenizer(chosen("tokenizer", "file", path=str(written(tmp_path)), separator="nope"), ())
    with pytest.raises(DataError, match="cannot read the tokenizer file"):
        make_tokenizer(chosen("tokenizer", "file", path=str(tmp_path / "nowhere")), ())
    (tmp_path / "text.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="not a table"):
        make_tokenizer(chosen("tokenizer", "file", path=str(tmp_path / "text.json")), ())
