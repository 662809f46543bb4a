"""Text to token ids and back, byte for byte, and how many bytes each token stands for. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np

from muse_core.errors import DataError
from muse_core.recipe.schema import GPT2, BytePair, Bytes

if TYPE_CHECKING:
    import tokenizers


class Tokenizer(Protocol):
    """Ids are 0 … vocabulary_size − 1; ``separator`` stands before every document and is never produced by text."""

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def separator(self) -> int: ...

    @property
    def byte_lengths(self) -> np.ndarray:
        """(vocabulary_size,) int64: UTF-8 bytes that each token stands for; 0 for the separator. The lengths of a
        text's tokens add up to the text's, which is what makes bits per byte exact."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`to_json`."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Token ids, one axis, int64."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the tokens stand for."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """As text; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        ...

    def to_json(self) -> str:
        """Everything about the tokenizer; :func:`from_json` reads it."""
        ...


class _Coded:
    """What tokenizers share once they say which bytes each token stands for."""

    separator: int
    pieces: Sequence[bytes]
    """Bytes of each token, in the order of ids."""

    @property
    def vocabulary_size(self) -> int:
        return len(self.pieces)

    @property
    def byte_lengths(self) -> np.ndarray:
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.pieces[int(i)] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    def to_json(self) -> str:
        raise NotImplementedError


class ByteTokenizer(_Coded):
    """Every UTF-8 byte is the token of its value; 256 separates documents."""

    separator = 256
    pieces = (*(bytes([value]) for value in range(256)), b"")

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def to_json(self) -> str:
        return json.dumps({"kind": "bytes"})


@attrs.frozen(eq=False, slots=False)
class BytePairTokenizer(_Coded):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; the bytes as in GPT-2, Radford et al. 2019)."""

    model: tokenizers.Tokenizer
    separator: int

    @functools.cached_property
    def pieces(self) -> Sequence[bytes]:
        byte_of = {character: value for value, character in enumerate(_byte_characters())}
        pieces = [b""] * max(self.separator + 1, self.model.get_vocab_size())
        for token, index in self.model.get_vocab().items():
            if index != self.separator:
                pieces[index] = bytes(byte_of[character] for character in token)
        return pieces

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.model.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def to_json(self) -> str:
        content = {"kind": "byte-pair", "separator": self.separator, "model": json.loads(self.model.to_str())}
        return json.dumps(content, sort_keys=True)


def identity(options: Any) -> str:
    """Digest of everything besides the training text that decides the tokenizer which ``options`` describe."""
    match options:
        case Bytes():
            return "bytes"
        case BytePair(vocabulary=size):
            return f"bpe/{size}/tokenizers {_tokenizers().__version__}"
        case GPT2(vocab=vocab, merges=merges):
            digests = [hashlib.sha256(_read(path).encode()).hexdigest() for path in (vocab, merges)]
            return f"gpt2/{'/'.join(digests)}/tokenizers {_tokenizers().__version__}"
    raise ValueError(f"unknown tokenizer options {options!r}")


def make_tokenizer(options: Any, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that ``options`` (of recipe.schema) describe; ``texts`` is the training split, read only by one
    that learns. DataError when files are unusable or the text supports fewer tokens than asked for."""
    match options:
        case Bytes():
            return ByteTokenizer()
        case BytePair(vocabulary=size):
            return _train(size, texts)
        case GPT2(vocab=vocab, merges=merges):
            return _from_files(vocab, merges)
    raise ValueError(f"unknown tokenizer options {options!r}")


def from_json(text: str) -> Tokenizer:
    """The tokenizer that :meth:`Tokenizer.to_json` described. ValueError for anything else."""
    match json.loads(text):
        case {"kind": "bytes"}:
            return ByteTokenizer()
        case {"kind": "byte-pair", "separator": int(separator), "model": dict(model)}:
            return BytePairTokenizer(_tokenizers().Tokenizer.from_str(json.dumps(model)), separator)
    raise ValueError("not the description of a tokenizer")


def _train(vocabulary: int, texts: Iterable[str]) -> BytePairTokenizer:
    library = _tokenizers()
    model = _byte_level(library.models.BPE())
    model.train_from_iterator(
        texts,
        library.trainers.BpeTrainer(
            vocab_size=vocabulary - 1,
            initial_alphabet=sorted(_byte_characters()),
            show_progress=False,
        ),
    )
    learned = model.get_vocab_size() + 1
    if learned < vocabulary:
        raise DataError(
            f"the training text supports only {learned} of {vocabulary} byte-pair tokens: "
            f"set data.tokenizer.vocabulary to {learned} or less, or give more text"
        )
    return BytePairTokenizer(model, separator=vocabulary - 1)


def _from_files(vocab_path: str, merges_path: str) -> BytePairTokenizer:
    library = _tokenizers()
    try:
        vocab = json.loads(_read(vocab_path))
    except json.JSONDecodeError as error:
        raise DataError(f"{vocab_path}: not JSON ({error}): give GPT-2's vocab.json") from error
    lines = [line for line in _read(merges_path).splitlines() if line and not line.startswith("#version")]
    merges = [tuple(line.split(" ")) for line in lines]
    end = "<|endoftext|>"
    if not isinstance(vocab, dict) or sorted(map(str, vocab.values())) != sorted(map(str, range(len(vocab)))):
        raise DataError(f"{vocab_path}: not a table of tokens numbered from 0 without gaps: give GPT-2's vocab.json")
    alphabet = set(_byte_characters())
    if missing := alphabet - set(vocab):
        raise DataError(f"{vocab_path}: {len(missing)} of the 256 byte tokens are missing: not byte-level encoding")
    if odd := [token for token in vocab if token != end and not set(token) <= alphabet]:
        raise DataError(f"{vocab_path}: token {odd[0]!r} is not made of bytes: not byte-level encoding")
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys():
            raise DataError(f"{merges_path}: merge {' '.join(merge)!r} does not fit {vocab_path}")
    model = _byte_level(library.models.BPE(vocab=vocab, merges=merges))
    return BytePairTokenizer(model, separator=vocab.get(end, len(vocab)))


def _byte_level(model: Any) -> tokenizers.Tokenizer:
    """Documents are cut into words by GPT-2's pattern. The separator stays outside the vocabulary of the library,
    which would otherwise find its name in text."""
    library = _tokenizers()
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _byte_characters() -> list[str]:
    """The printable character by which GPT-2's files write each byte value."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (value for value in range(256) if value not in printable)
    shifted = {value: 256 + rank for rank, value in enumerate(others)}
    return [chr(shifted.get(value, value)) for value in range(256)]


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the tokenizer file ({error})") from error


def _tokenizers() -> Any:
    import tokenizers

    return tokenizers
