"""The conformance suite of sources of text."""

from __future__ import annotations

import itertools

from muse_core.contracts import Document
from muse_core.testing.cases import Case
from muse_core.testing.suite import Suite

SPLITS = (None, "train", "validation", "test")


class SourceSuite(Suite):
    """Documents in a fixed order, and a fingerprint of them; see ``contracts.Source``."""

    kind = "source"
    first = 50
    """Documents that are read."""

    def documents(self, case: Case) -> list[Document]:
        return list(itertools.islice(self.build(case).documents(), self.first))

    def test_gives_documents(self, case: Case) -> None:
        documents = self.documents(case)
        assert documents, "no document"
        for document in documents:
            assert isinstance(document, Document), f"{type(document).__name__} is no contracts.Document"
            assert isinstance(document.text, str) and isinstance(document.name, str) and document.name
            assert document.split in SPLITS, f"split {document.split!r} of {document.name}"
        assert any(document.text.strip() for document in documents), "every document is empty"

    def test_gives_the_same_documents_again(self, case: Case) -> None:
        source = self.build(case)
        again = list(itertools.islice(source.documents(), self.first))
        assert again == list(itertools.islice(source.documents(), self.first)), "a second reading differs"
        assert again == self.documents(case), "another instance reads something else"

    def test_the_fingerprint_is_stable(self, case: Case) -> None:
        fingerprint = self.build(case).fingerprint()
        assert isinstance(fingerprint, str) and fingerprint
        assert self.build(case).fingerprint() == fingerprint
