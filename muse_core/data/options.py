"""Options of the core's tokenizers. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
from attrs import field, validators

from muse_core.component import RecipePath
from muse_core.data import LEAST_VOCABULARY

PAGE = " ".join(f"word{number} other{number * 7}" for number in range(400))
"""Text that supports LEAST_VOCABULARY tokens, for examples."""


@attrs.frozen(kw_only=True)
class BytesOptions:
    """Every UTF-8 byte is a token; 256 tokens and one that separates documents."""


@attrs.frozen(kw_only=True)
class BytePairOptions:
    """Byte-level byte-pair encoding, trained on the training split."""

    vocabulary: int = field(default=8192, validator=[validators.ge(LEAST_VOCABULARY), validators.le(1_000_000)])
    """Number of tokens, the separator included."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite builds besides, of a text that supports few tokens."""
        return [{"vocabulary": LEAST_VOCABULARY}]


@attrs.frozen(kw_only=True)
class GPT2Options:
    """GPT-2's byte-pair encoding from local files."""

    vocab: RecipePath
    """Path of vocab.json, relative to the recipe."""
    merges: RecipePath
    """Path of merges.txt, relative to the recipe."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite builds: the bytes and two merges."""
        from muse_core.data.byte_pair import END, byte_characters

        merges = [("t", "h"), ("th", "e")]
        tokens = [*byte_characters(), *map("".join, merges), END]
        vocab = {token: index for index, token in enumerate(tokens)}
        (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
        return [{"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}]


@attrs.frozen(kw_only=True)
class TokenizerFileOptions:
    """A byte-level encoding of the library tokenizers, as tokenizer.json or a directory of Hugging Face holds it."""

    path: RecipePath
    """Path of tokenizer.json or of a directory with it, relative to the recipe."""
    separator: str | None = None
    """The special token that stands before every document. Default: the end-of-text token that tokenizer_config.json
    names, else <|endoftext|>, else a new one."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite builds: a file of the library's own making."""
        from muse_core.data.byte_pair import train

        path = folder / "tokenizer.json"
        train(LEAST_VOCABULARY, [PAGE]).model.save(str(path))
        return [{"path": str(path)}]


@attrs.frozen(kw_only=True)
class OfRunOptions:
    """The tokenizer that a run keeps in its directory. A table with ``from`` needs no ``use``."""

    from_: RecipePath = field(metadata={"key": "from"})
    """Run directory."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite builds: what a run of bytes keeps."""
        described = '{"kind": "bytes"}'
        digest = hashlib.sha256(described.encode()).hexdigest()
        (folder / "recipe.toml").write_text('name = "example"\n', encoding="utf-8")
        (folder / "tokenizer.json").write_text(described, encoding="utf-8")
        (folder / "muse.lock.toml").write_text(
            f'format = 1\n[digests]\ndata = ""\ntokenizer = "{digest}"\n[recipe]\nname = "example"\n',
            encoding="utf-8",
        )
        return [{"from": str(folder)}]
