"""What a tokenizer is: text to token ids and back, byte for byte. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np


class Tokenizer(ABC):
    """Ids are 0 … vocabulary_size − 1; one of them, ``separator``, stands before every document and is never produced
    by text."""

    separator: int

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.vocabulary_size:,} tokens, separator {self.separator}>"

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
