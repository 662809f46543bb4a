"""Texts given by a test as a source, and their corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import attrs
import pytest

from muse_core.contracts import Document
from muse_core.data.corpus import Corpus, prepare_corpus
from muse_core.recipe.schema import Data
from muse_core.testing.building import chosen


@attrs.frozen
class Texts:
    """A source of given texts; ``splits`` as long as they are, or empty."""

    texts: tuple[str, ...] = attrs.field(converter=tuple)
    splits: tuple[str | None, ...] = attrs.field(default=(), converter=tuple)

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.texts, self.splits)).encode("utf-8", "backslashreplace")).hexdigest()

    def documents(self) -> Iterator[Document]:
        for number, text in enumerate(self.texts):
            yield Document(text=text, name=f"text {number}", split=self.splits[number] if self.splits else None)


@pytest.fixture(scope="session")
def texts_source():
    return Texts


@pytest.fixture(scope="session")
def make_corpus(tmp_path_factory):
    """``make_corpus(texts, tokenizer=…, seed=…, splits=…, cache=…, **keys of [data])``."""
    shared = tmp_path_factory.mktemp("cache")

    def make(texts: Iterable[str], *, splits=(), seed=0, cache=None, report=None, tokenizer=None, **keys) -> Corpus:
        data = Data(source=None, tokenizer=tokenizer or chosen("tokenizer", "bytes"), **keys)
        return prepare_corpus(data, Texts(texts, splits), seed=seed, cache=cache or shared, report=report)

    return make


@pytest.fixture(scope="session")
def numbered(make_corpus):
    """Forty documents of unequal length; no two windows of two dozen tokens are equal."""
    return make_corpus([" ".join(str(1000 * n + k) for k in range(10 + 7 * n % 31)) for n in range(40)])
