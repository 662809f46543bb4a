"""Options of the core's tokenizers. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from attrs import field, validators

from muse_core.component import RecipePath

LEAST_VOCABULARY = 300
"""Of byte-pair encoding: 256 bytes, the separator and a few merges."""


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


@attrs.frozen(kw_only=True)
class TokenizerFileOptions:
    """A byte-level encoding of the library tokenizers, as tokenizer.json or a directory of Hugging Face holds it."""

    path: RecipePath
    """Path of tokenizer.json or of a directory with it, relative to the recipe."""
    separator: str | None = None
    """The special token that stands before every document. Default: the end-of-text token that tokenizer_config.json
    names, else <|endoftext|>, else a new one."""


@attrs.frozen(kw_only=True)
class OfRunOptions:
    """The tokenizer that a run keeps in its directory. A table with ``from`` needs no ``use``."""

    from_: RecipePath = field(metadata={"key": "from"})
    """Run directory."""
