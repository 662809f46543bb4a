"""The tokenizers that a recipe may choose, and their descriptions on disk. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from muse_core.component import Use, load
from muse_core.data.options import BytePairOptions, BytesOptions, GPT2Options, TokenizerFileOptions
from muse_core.data.sources import built, read_tokenizer_file
from muse_core.data.tokenizer import Tokenizer
from muse_core.errors import DataError, PluginError
from muse_core.plugins import Registry, UnknownComponent, load_plugins
from muse_core.plugins.discovery import CORE
from muse_core.plugins.raised import asked, raised


class ByteTokenizer(Tokenizer):
    """Every UTF-8 byte is the token of its value; 256 separates documents."""

    separator = 256
    pieces = (*(bytes([value]) for value in range(256)), b"")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def to_json(self) -> str:
        return json.dumps({"kind": "bytes"})


class Bytes:
    """UTF-8 bytes as tokens; see ``contracts.TokenizerMaker``."""

    def __init__(self, options: BytesOptions, context: Any):
        pass

    def identity(self) -> str:
        """There is one."""
        return "bytes"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        """Reads no text."""
        return ByteTokenizer()

    @staticmethod
    def restore(table: dict[str, Any]) -> Tokenizer:
        """As ``from_json``, which knows it."""
        return _of_core(table)


class BytePair(Bytes):
    """Byte-level byte-pair encoding (Sennrich et al. 2016) of ``tokenizers``, trained on the training split."""

    def __init__(self, options: BytePairOptions, context: Any):
        self.options = options

    def identity(self) -> str:
        """The size, and the library by version."""
        return f"bpe/{self.options.vocabulary}/{_library()}"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        """Learns from the texts. DataError when they support fewer tokens than asked for."""
        from muse_core.data import byte_pair

        return byte_pair.train(self.options.vocabulary, texts)


class GPT2(Bytes):
    """GPT-2's encoding (Radford et al. 2019) from its vocab.json and merges.txt."""

    def __init__(self, options: GPT2Options, context: Any):
        self.options = options

    def identity(self) -> str:
        """Digests of both files, and the library by version. DataError for files that cannot be read."""
        paths = (self.options.vocab, self.options.merges)
        digests = (hashlib.sha256(read_tokenizer_file(path).encode()).hexdigest() for path in paths)
        return f"gpt2/{'/'.join(digests)}/{_library()}"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        """Reads the files alone. DataError when they are not a byte-level encoding."""
        from muse_core.data import byte_pair

        return byte_pair.read_files(self.options.vocab, self.options.merges)


class TokenizerFile(Bytes):
    """A byte-level tokenizer.json of the library ``tokenizers``."""

    def __init__(self, options: TokenizerFileOptions, context: Any):
        self.options = options

    def identity(self) -> str:
        """Digest of what is made of the file, and the library by version."""
        return f"file/{self.make(()).digest}/{_library()}"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        """Reads the file alone. DataError when it is not a byte-level encoding that gives text back."""
        from muse_core.data import tokenizer_file

        return tokenizer_file.read(self.options.path, self.options.separator)


def identity(use: Use) -> str:
    """Names everything besides the training text that decides the tokenizer that a recipe chooses."""
    found = asked(use, "asked for its identity", built(use, None).identity)
    if not isinstance(found, str) or not found:
        raise _departed(use, f"its identity is {found!r} where a text is due")
    return found if use.distribution == CORE else f"{use.distribution} {use.version}/{use.name}/{found}"


def given(tokenizer: Tokenizer) -> str:
    """The same for a tokenizer that exists."""
    return f"given/{tokenizer.digest}/{_library()}"


def make_tokenizer(use: Use, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that a recipe chooses.

    texts: the training split, read only by one that learns. DataError when files are unusable or the text supports
    fewer tokens than asked for; PluginError for what departs from ``contracts.TokenizerMaker``.
    """
    maker = built(use, None)
    tokenizer = asked(use, "making the tokenizer", lambda: maker.make(texts))
    if not isinstance(tokenizer, Tokenizer):
        raise _departed(use, f"make gave a {type(tokenizer).__name__}, not a muse_core.data.tokenizer.Tokenizer")
    size = tokenizer.vocabulary_size
    if not 0 <= tokenizer.separator < size or tokenizer.pieces[tokenizer.separator]:
        raise _departed(use, f"its separator {tokenizer.separator} is not a token without bytes below {size}")
    return tokenizer


def from_json(text: str, registry: Registry | None = None, chosen: Use | str = "") -> Tokenizer:
    """The tokenizer that :meth:`Tokenizer.to_json` described; one of a plugin is read by the plugin, found by the name
    that the description gives as its kind.

    chosen: the component that wrote it, or how a recipe names it, where that is known; it decides between distributions
    that offer one name. ValueError for anything else than such a description; PluginError for a plugin that does not
    read what it wrote.
    """
    table = json.loads(text)
    try:
        return _of_core(table)
    except ValueError:
        kind = table.get("kind") if isinstance(table, dict) else None
        if not isinstance(kind, str):
            raise
    if isinstance(chosen, Use) and chosen.name == kind:
        owner, implementation = chosen.title, chosen.implementation
    else:
        named = chosen if isinstance(chosen, str) and chosen.partition("@")[0] == kind else kind
        try:
            row = (registry or load_plugins(strict=False)).find("tokenizer", named)
        except UnknownComponent as error:
            raise ValueError(str(error)) from None
        owner = f"tokenizer {row.name!r} of {row.distribution} {row.version}"
        implementation = row.component.implementation
    try:
        tokenizer: Tokenizer = load(implementation).restore(table)
    except ValueError:
        raise
    except Exception as error:
        raise PluginError(f"{owner} raised when reading a tokenizer: {raised(error, implementation)}") from error
    if not isinstance(tokenizer, Tokenizer) or tokenizer.to_json() != text:
        raise PluginError(f"{owner} does not keep the contract: it reads another tokenizer than it wrote")
    return tokenizer


def _of_core(table: Any) -> Tokenizer:
    match table:
        case {"kind": "bytes"}:
            return ByteTokenizer()
        case {"kind": "byte-pair", "separator": int(separator), "model": dict(model)}:
            from muse_core.data import byte_pair

            return byte_pair.restore(json.dumps(model), separator)
        case {"kind": "numbers", "size": int(size)}:
            return Numbers(size)
    raise ValueError("not the description of a tokenizer")


def _departed(use: Use, what: str) -> PluginError:
    return PluginError(f"{use.title} does not keep the contract: {what}")


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
