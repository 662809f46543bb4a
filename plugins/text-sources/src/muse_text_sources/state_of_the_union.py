"""The State of the Union addresses, installed with this plugin."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext
from muse_core.errors import DataError
from muse_text_sources.options import StateOfTheUnionOptions

CORPUS = Path(__file__).parent / "corpora" / "state-of-the-union.parquet"
SHA256 = "76463c0593a63e544df423428b9de77df11cc1c967a71512351250cd581a174a"


class StateOfTheUnion:
    """233 documents in chronological order; origin and licence in corpora/NOTICE.md."""

    def __init__(self, options: StateOfTheUnionOptions, context: SourceContext) -> None:
        self._content = _read()

    def fingerprint(self) -> str:
        return f"state-of-the-union/{SHA256}"

    def documents(self) -> Iterator[Document]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(io.BytesIO(self._content))
        for name, text in zip(table["name"].to_pylist(), table["text"].to_pylist(), strict=True):
            yield Document(text=text, name=name)


def _read() -> bytes:
    try:
        content = CORPUS.read_bytes()
    except OSError as error:
        raise DataError(
            f"{CORPUS}: cannot read the corpus ({error.strerror}): install muse-text-sources again"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(f"{CORPUS}: the corpus file is damaged (its SHA-256 differs): install muse-text-sources again")
    return content
