"""The conformance suite of sources, of text and of examples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from muse_core.contracts import Batch, Document
from muse_core.testing.cases import Case
from muse_core.testing.suite import Suite

SPLITS = (None, "train", "validation", "test")


class SourceSuite(Suite):
    """Documents in a fixed order, and a fingerprint of them; see ``contracts.Source``. For a ``contracts.TaskSource``
    examples that depend on their split, number and length alone."""

    kind = "source"
    first = 50
    """Documents that are read."""
    length = 256
    """Tokens of the examples that are read."""

    def documents(self, case: Case) -> list[Document]:
        if hasattr(self.build(case), "examples"):
            pytest.skip("the source makes examples, not documents")
        return list(itertools.islice(self.build(case).documents(), self.first))

    def test_gives_documents(self, case: Case) -> None:
        documents = self.documents(case)
        assert documents, "no document"
        for document in documents:
            assert isinstance(document, Document), f"{type(document).__name__} is not a contracts.Document"
            assert isinstance(document.text, str), f"the text of {document.name!r} is a {type(document.text).__name__}"
            assert isinstance(document.name, str) and document.name, f"a document's name is {document.name!r}"
            assert document.split in SPLITS, f"split {document.split!r} of {document.name}"
        assert any(document.text.strip() for document in documents), "every document is empty"

    def test_gives_the_same_documents_again(self, case: Case) -> None:
        self.documents(case)
        source = self.build(case)
        again = list(itertools.islice(source.documents(), self.first))
        assert again == list(itertools.islice(source.documents(), self.first)), "a second reading differs"
        assert again == self.documents(case), "another instance reads something else"

    def test_the_fingerprint_is_stable(self, case: Case) -> None:
        fingerprint = self.build(case).fingerprint()
        assert isinstance(fingerprint, str) and fingerprint, f"the fingerprint is {fingerprint!r}, not a text"
        assert self.build(case).fingerprint() == fingerprint, "another instance has another fingerprint"

    def examples(self, case: Case, split: str, indices: range) -> Batch:
        source = self.build(case)
        if not hasattr(source, "examples"):
            pytest.skip("the source gives documents")
        batch: Batch = source.examples(split, np.array(indices), self.length)
        return batch

    def test_examples_are_tokens_with_something_to_count(self, case: Case) -> None:
        batch = self.examples(case, "train", range(4))
        size = self.build(case).vocabulary_size
        for name, tensor in (("inputs", batch.inputs), ("labels", batch.labels), ("loss_mask", batch.loss_mask)):
            assert tensor.shape == (4, self.length), f"{name} has shape {tuple(tensor.shape)}"
        for tensor in (batch.inputs, batch.labels):
            assert 0 <= tensor.min() <= tensor.max() < size, "a token outside the vocabulary"
        assert batch.loss_mask.any(dim=1).all(), "an example without anything to count"

    def test_examples_depend_on_split_and_number_alone(self, case: Case) -> None:
        whole, piece = self.examples(case, "train", range(4)), self.examples(case, "train", range(2, 4))
        for one, other in zip(whole[:3], piece[:3]):
            assert (one[2:] == other).all(), "an example depends on what it was asked for with"
        other = self.examples(case, "validation", range(4))
        assert (whole.inputs != other.inputs).any(dim=1).all(), "the splits share an example"
