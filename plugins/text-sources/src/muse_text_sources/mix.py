"""Several sources as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext, open_source
from muse_text_sources.options import MixOptions


class Mix:
    """Documents keep the split that their source gives them."""

    def __init__(self, options: MixOptions, context: SourceContext) -> None:
        self._sources = [open_source(use, context.cache) for use in options.sources]

    def fingerprint(self) -> str:
        parts = "\n".join(source.fingerprint() for source in self._sources)
        return f"mix/{hashlib.sha256(parts.encode()).hexdigest()}"

    def documents(self) -> Iterator[Document]:
        for source in self._sources:
            yield from source.documents()
