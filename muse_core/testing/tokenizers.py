"""The conformance suite of tokenizers."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from muse_core.data import tokenizers
from muse_core.data.tokenizer import Tokenizer
from muse_core.errors import DataError
from muse_core.testing.building import resolve
from muse_core.testing.cases import Case
from muse_core.testing.suite import Suite

TRAINING = (
    *("The quick brown fox jumps over the lazy dog. <|endoftext|>\n", "Größe, naïve, 日本語, 🦊🦊! " * 3) * 8,
    *(" ".join(str(number * number) for number in range(start, start + 40)) for start in range(100, 900, 40)),
)
HARD = (
    "", " ", "  two  spaces\n\ttab\r\n", "A ☃ cafe\u0301 ﬁ \u00a0\u3000\u200b ▁",
    "日本語 🦊 👩‍👩‍👧", "\x00\x7f\u0080", "<|endoftext|>",
    "1234567890" * 20, "Ġ Ċ â", "\ud7ff\ue000\U0010ffff", *TRAINING[:2],
)


class TokenizerSuite(Suite):
    """Text to tokens and back, byte for byte; see ``contracts.TokenizerMaker`` and ``muse_core.data.tokenizer``."""

    kind = "tokenizer"

    def tokenizer(self, case: Case) -> Tokenizer:
        """Learned from TRAINING where it learns; one that needs more text is skipped in its own words."""
        use = resolve(case.kind, case.name, case.options, self.registry())
        try:
            return tokenizers.make_tokenizer(use, iter(TRAINING))
        except DataError as refusal:
            pytest.skip(f"refused: {refusal}")

    def texts(self) -> list[str]:
        """What is hard, and characters drawn from all of Unicode."""
        draw = random.Random(0)
        codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
        drawn = ["".join(map(chr, draw.sample(codes, length))) for length in (1, 3, 40, 200)]
        return [*HARD, *drawn]

    def test_gives_text_back_byte_for_byte(self, case: Case) -> None:
        tokenizer = self.tokenizer(case)
        for text in self.texts():
            assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode(), f"{text[:40]!r} comes back changed"
            assert tokenizer.decode(tokenizer.encode(text)) == text, f"decode changes {text[:40]!r}"

    def test_counts_every_byte_once(self, case: Case) -> None:
        tokenizer = self.tokenizer(case)
        pieces = len(tokenizer.pieces)
        assert pieces == tokenizer.vocabulary_size, f"{pieces} pieces of {tokenizer.vocabulary_size} tokens"
        for text in self.texts():
            ids = tokenizer.encode(text)
            assert np.issubdtype(ids.dtype, np.integer) and ids.ndim == 1, f"ids are {ids.dtype} of {ids.ndim} axes"
            assert all(0 <= index < tokenizer.vocabulary_size for index in ids), "an id outside the vocabulary"
            assert tokenizer.byte_lengths[ids].sum() == len(text.encode()), "bits per byte would be wrong"

    def test_text_never_holds_the_separator(self, case: Case) -> None:
        tokenizer = self.tokenizer(case)
        for text in self.texts():
            found = (tokenizer.encode(text) == tokenizer.separator).any()
            assert not found, f"{text[:40]!r} has the separator among its tokens"

    def test_a_text_has_the_same_tokens_beside_others(self, case: Case) -> None:
        tokenizer, texts = self.tokenizer(case), self.texts()
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            assert np.array_equal(ids, tokenizer.encode(text)), "its tokens depend on the texts beside it"

    def test_the_same_text_gives_the_same_tokenizer(self, case: Case) -> None:
        assert self.tokenizer(case).digest == self.tokenizer(case).digest, "two made of one text have other digests"

    def test_is_read_again_from_a_runs_directory(self, case: Case) -> None:
        tokenizer = self.tokenizer(case)
        described = tokenizer.to_json()
        assert isinstance(json.loads(described).get("kind"), str), "to_json names no kind"
        again = tokenizers.from_json(described, self.registry())
        assert again.digest == tokenizer.digest, "read again, it has another digest"
        assert again.separator == tokenizer.separator, "read again, it has another separator"
        pieces = [[bytes(piece) for piece in one.pieces] for one in (again, tokenizer)]
        assert pieces[0] == pieces[1], "read again, it has other pieces"
        for text in self.texts():
            assert np.array_equal(again.encode(text), tokenizer.encode(text)), "it cuts otherwise once it is read again"

    def test_names_what_decides_it(self, case: Case) -> None:
        use = resolve(case.kind, case.name, case.options, self.registry())
        assert tokenizers.identity(use) == tokenizers.identity(use), "its identity is not stable"
