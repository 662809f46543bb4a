"""Byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in GPT-2, Radford et al. 2019) by ``tokenizers``."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence

import attrs
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from muse_core.data import LEAST_VOCABULARY
from muse_core.data.sources import read_tokenizer_file
from muse_core.data.tokenizer import Tokenizer
from muse_core.errors import DataError

END = "<|endoftext|>"
LONGEST_WORD = 512
"""Characters of a word that training of the encoding looks at together."""


@attrs.frozen(eq=False, repr=False, slots=False)
class BytePairTokenizer(Tokenizer):
    """The separator stays outside the vocabulary of the library, which would otherwise find its name in text."""

    model: tokenizers.Tokenizer
    separator: int

    @functools.cached_property
    def pieces(self) -> Sequence[bytes]:
        value_of = {character: value for value, character in enumerate(byte_characters())}
        vocabulary = self.model.get_vocab(with_added_tokens=False)
        added = self.model.get_added_tokens_decoder()
        pieces = [b""] * (max(self.separator, *vocabulary.values(), *added) + 1)
        for token, index in vocabulary.items():
            if index not in added and index != self.separator:
                pieces[index] = bytes(value_of[character] for character in token)
        for index, token in added.items():
            pieces[index] = b"" if token.special else token.content.encode()
        return pieces

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self.model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def to_json(self) -> str:
        content = {"kind": "byte-pair", "separator": self.separator, "model": json.loads(self.model.to_str())}
        return json.dumps(content, sort_keys=True)


def train(vocabulary: int, texts: Iterable[str]) -> BytePairTokenizer:
    """Learn ``vocabulary`` tokens, the separator among them, from ``texts``. The same texts give the same tokens.

    Words of more than LONGEST_WORD characters of one kind (DNA, base64) are learned from in pieces, since learning
    takes time quadratic in the length of a word; encoding takes them whole. DataError when the text supports fewer.
    """
    model = _byte_level(models.BPE())
    words = model.pre_tokenizer
    model.pre_tokenizer = pre_tokenizers.Sequence([_long_words(), words])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1, initial_alphabet=sorted(byte_characters()), show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    model.pre_tokenizer = words
    learned = model.get_vocab_size() + 1
    if learned < vocabulary:
        advice = f"set data.tokenizer.vocabulary to {learned} or less" if learned >= LEAST_VOCABULARY else (
            'set data.tokenizer to "bytes"'
        )
        raise DataError(
            f"the training text supports only {learned} of {vocabulary} byte-pair tokens: {advice}, or give more text"
        )
    return BytePairTokenizer(model, separator=vocabulary - 1)


def read_files(vocab_path: str, merges_path: str) -> BytePairTokenizer:
    """The encoding of GPT-2's vocab.json and merges.txt. DataError when they are not byte-level encoding."""
    vocab = _read_vocab(vocab_path)
    lines = (line for line in read_tokenizer_file(merges_path).splitlines() if not line.startswith("#version"))
    merges = []
    for line in filter(None, lines):
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise DataError(f"{merges_path}: merge {line!r} does not fit {vocab_path}")
        merges.append((left, right))
    return BytePairTokenizer(_byte_level(models.BPE(vocab=vocab, merges=merges)), vocab.get(END, len(vocab)))


def restore(model: str, separator: int) -> BytePairTokenizer:
    """From the library's JSON. The special tokens among its added ones are never given by text."""
    tokenizer = tokenizers.Tokenizer.from_str(model)
    tokenizer.encode_special_tokens = True
    return BytePairTokenizer(tokenizer, separator)


def byte_characters() -> list[str]:
    """The printable character by which GPT-2's files write each byte value."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (value for value in range(256) if value not in printable)
    shifted = {value: 256 + rank for rank, value in enumerate(others)}
    return [chr(shifted.get(value, value)) for value in range(256)]


def _read_vocab(path: str) -> dict[str, int]:
    try:
        vocab = json.loads(read_tokenizer_file(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}): give GPT-2's vocab.json") from error
    whole = isinstance(vocab, dict) and all(type(index) is int for index in vocab.values())
    if not whole or set(vocab.values()) != set(range(len(vocab))):
        raise DataError(f"{path}: not a table of tokens numbered from 0 without gaps: give GPT-2's vocab.json")
    alphabet = set(byte_characters())
    if missing := alphabet - vocab.keys():
        raise DataError(f"{path}: {len(missing)} of the 256 byte tokens are missing: not byte-level encoding")
    if odd := [token for token in vocab if token != END and not alphabet.issuperset(token)]:
        raise DataError(f"{path}: token {odd[0]!r} is not made of bytes: not byte-level encoding")
    return vocab


def _long_words() -> pre_tokenizers.PreTokenizer:
    """Cuts runs of LONGEST_WORD letters, digits, blanks or other signs off, and nothing else."""
    kinds = (r"\p{L}", r"\p{N}", r"\s", r"[^\s\p{L}\p{N}]")
    pattern = "|".join(f"{kind}{{{LONGEST_WORD}}}" for kind in kinds)
    return pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """Documents are cut into words by GPT-2's pattern."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
