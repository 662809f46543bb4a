"""Text to token ids and back, byte for byte, and how many bytes each token stands for. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muse_core.errors import DataError
from muse_core.recipe.schema import GPT2, BytePair, Bytes


class Tokenizer(ABC):
    """Ids are 0 … vocabulary_size − 1; one of them, ``separator``, stands before every document and is never produced
    by text."""

    separator: int

    @property
    @abstractmethod
    def pieces(self) -> Sequence[bytes]:
        """Bytes that each token stands for, in the order of ids; none for the separator."""

    @property
    def vocabulary_size(self) -> int:
        return len(self.pieces)

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """(vocabulary_size,) int64. The lengths of a text's tokens add up to its UTF-8 length, which is what makes
        bits per byte exact."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, one axis, of an integer type that holds them."""

    @abstractmethod
    def to_json(self) -> str:
        """Everything about the tokenizer; :func:`from_json` reads it."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids, (tokens,)."""
        return self.encode_batch([text])[0]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the tokens stand for."""
        return b"".join(self.pieces[int(index)] for index in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """As text; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")


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
    raise ValueError(f"unknown tokenizer options {options!r}")


def make_tokenizer(options: Any, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that ``options`` (Bytes, BytePair or GPT2 of the recipe's schema) describe.

    texts: the training split, read only by one that learns. DataError when files are unusable or the text supports
    fewer tokens than asked for.
    """
    match options:
        case Bytes():
            return ByteTokenizer()
        case BytePair(vocabulary=size):
            from muse_core.training import byte_pair

            return byte_pair.train(size, texts)
        case GPT2(vocab=vocab, merges=merges):
            from muse_core.training import byte_pair

            return byte_pair.read_files(vocab, merges)
    raise ValueError(f"unknown tokenizer options {options!r}")


def from_json(text: str) -> Tokenizer:
    """The tokenizer that :meth:`Tokenizer.to_json` described. ValueError for anything else."""
    match json.loads(text):
        case {"kind": "bytes"}:
            return ByteTokenizer()
        case {"kind": "byte-pair", "separator": int(separator), "model": dict(model)}:
            from muse_core.training import byte_pair

            return byte_pair.restore(json.dumps(model), separator)
    raise ValueError("not the description of a tokenizer")


def read_tokenizer_file(path: str) -> str:
    """Content of a local tokenizer file. DataError when it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the tokenizer file ({error})") from error


def _library() -> str:
    """The library that cuts text into tokens, by version: another version might cut differently."""
    import tokenizers

    return f"tokenizers {tokenizers.__version__}"
