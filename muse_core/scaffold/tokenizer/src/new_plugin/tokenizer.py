"""The tokenizer, and what makes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from muse_core.data.tokenizer import Tokenizer

from new_plugin.options import NewPluginOptions

VERSION = 1
"""Part of the identity: raise it when equal options give other tokens."""


class Characters(Tokenizer):
    """Ids 0 to 255 are bytes, 256 is the separator, then come the characters."""

    separator = 256

    def __init__(self, characters: str):
        self.characters = characters
        self._of = {character: (257 + place,) for place, character in enumerate(characters)}

    @property
    def pieces(self) -> Sequence[bytes]:
        """What each token stands for: their lengths make bits per byte exact."""
        return [*(bytes([value]) for value in range(256)), b"", *(one.encode() for one in self.characters)]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """A character's own token, or its bytes."""
        return [
            np.array([token for one in text for token in self._of.get(one) or one.encode()], dtype=np.int64)
            for text in texts
        ]

    def to_json(self) -> str:
        """What stands in the directory of every run; ``kind`` is the name of the component."""
        return json.dumps({"kind": "new-plugin", "characters": self.characters})


class NewPlugin:
    """Makes the tokenizer from training text, and reads it again from a run."""

    def __init__(self, options: NewPluginOptions, context: None):
        self.options = options

    def identity(self) -> str:
        """Everything besides the text that decides the tokens."""
        return f"{VERSION}/{self.options.characters}"

    def make(self, texts: Iterable[str]) -> Characters:
        """The most common characters, those of equal number in the order of Unicode."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(one for one in text if one > "\x7f")
        ranked = sorted(counts, key=lambda one: (-counts[one], one))
        return Characters("".join(ranked[: self.options.characters]))

    @staticmethod
    def restore(table: dict[str, Any]) -> Characters:
        """ValueError for what ``to_json`` has not written."""
        if not isinstance(table.get("characters"), str):
            raise ValueError("it names no characters")
        return Characters(table["characters"])
