"""Several sources as one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Set

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext, open_source
from muse_text_sources.options import MixOptions


class Mix:
    """Documents keep the split that their source gives them. Sources of one name are told apart by a number, ``files``
    and ``files-2``, in the order of the recipe, so that comparisons have figures of each."""

    def __init__(self, options: MixOptions, context: SourceContext) -> None:
        self._sources = [open_source(use, context.cache) for use in options.sources]

    def fingerprint(self) -> str:
        parts = "\n".join(source.fingerprint() for source in self._sources)
        return f"mix/{hashlib.sha256(parts.encode()).hexdigest()}"

    def documents(self) -> Iterator[Document]:
        taken: set[str] = set()
        for source in self._sources:
            names: dict[str, str] = {}
            for document in source.documents():
                given = str(document.source)
                if given not in names:
                    names[given] = _free(given, taken | set(names.values()))
                yield document._replace(source=names[given])
            taken |= set(names.values())


def _free(name: str, taken: Set[str]) -> str:
    """``name``, or the first of it with a number behind it that is not taken."""
    numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in numbered if one not in taken)
