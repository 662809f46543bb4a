"""The tokenizers that a recipe may choose, and their descriptions on disk. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from muse_core.data.tokenizer import Tokenizer, read_tokenizer_file
from muse_core.errors import DataError
from muse_core.recipe.schema import GPT2, BytePair, Bytes, TokenizerFile


class ByteTokenizer(Tokenizer):
    """Every UTF-8 byte is the token of its value; 256 separates documents."""

    separator = 256
    pieces = (*(bytes([value]) for value in range(256)), b"")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def to_json(self) -> str:
        return json.dumps({"kind": "bytes"})


def identity(options: Any) -> str:
    """Names everything besides the training text that decides the tokenizer which ``options`` describe."""
    match options:
        case Bytes():
            return "bytes"
        case BytePair(vocabulary=size):
            return f"bpe/{size}/{_library()}"
        case GPT2(vocab=vocab, merges=merges):
            digests = (hashlib.sha256(read_tokenizer_file(path).encode()).hexdigest() for path in (vocab, merges))
            return f"gpt2/{'/'.join(digests)}/{_library()}"
        case TokenizerFile():
            return f"file/{make_tokenizer(options, ()).digest}/{_library()}"
    raise ValueError(f"unknown tokenizer options {options!r}")


def given(tokenizer: Tokenizer) -> str:
    """The same for a tokenizer that exists."""
    return f"given/{tokenizer.digest}/{_library()}"


def make_tokenizer(options: Any, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that ``options`` (Bytes, BytePair, GPT2 or TokenizerFile of the recipe's schema) describe.

    texts: the training split, read only by one that learns. DataError when files are unusable or the text supports
    fewer tokens than asked for.
    """
    match options:
        case Bytes():
            return ByteTokenizer()
        case BytePair(vocabulary=size):
            from muse_core.data import byte_pair

            return byte_pair.train(size, texts)
        case GPT2(vocab=vocab, merges=merges):
            from muse_core.data import byte_pair

            return byte_pair.read_files(vocab, merges)
        case TokenizerFile(path=path, separator=separator):
            from muse_core.data import tokenizer_file

            return tokenizer_file.read(path, separator)
    raise ValueError(f"unknown tokenizer options {options!r}")


def from_json(text: str) -> Tokenizer:
    """The tokenizer that :meth:`Tokenizer.to_json` described. ValueError for anything else."""
    match json.loads(text):
        case {"kind": "bytes"}:
            return ByteTokenizer()
        case {"kind": "byte-pair", "separator": int(separator), "model": dict(model)}:
            from muse_core.data import byte_pair

            return byte_pair.restore(json.dumps(model), separator)
        case {"kind": "numbers", "size": int(size)}:
            return Numbers(size)
    raise ValueError("not the description of a tokenizer")


def _library() -> str:
    """The library that cuts text into tokens, by version: another version might cut differently."""
    import tokenizers

    return f"tokenizers {tokenizers.__version__}"


class Numbers(Tokenizer):
    """The tokens of a task: numbers that stand for no text. There is no separator among them."""

    separator = -1

    def __init__(self, size: int):
        self.size = size

    @property
    def pieces(self) -> Sequence[bytes]:
        return [f"{number} ".encode() for number in range(self.size)]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Reads numbers apart by spaces. Raises DataError for anything else."""
        try:
            found = [np.array([int(word) for word in text.split()], dtype=np.int64) for text in texts]
        except ValueError as error:
            raise DataError(f"the tokens of a task are numbers below {self.size}, apart by spaces: {error}") from None
        if any(ids.size and not 0 <= ids.min() <= ids.max() < self.size for ids in found):
            raise DataError(f"the tokens of a task are numbers below {self.size}")
        return found

    def to_json(self) -> str:
        return json.dumps({"kind": "numbers", "size": self.size})
