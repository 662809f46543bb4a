"""Local files as documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext
from muse_core.errors import DataError
from muse_text_sources.finding import find, suffix
from muse_text_sources.options import FilesOptions
from muse_text_sources.reading import read_file


class Files:
    """Files in the order of ``paths``, those of a folder or pattern in the order of their names.

    DataError when a path leads to no file.
    """

    def __init__(self, options: FilesOptions, context: SourceContext) -> None:
        self._options = options
        self._files = find(options.paths)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self._options.text}/{self._options.documents}".encode())
        for path in self._files:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error
            digest.update(f"/{suffix(path)}/{content}".encode())
        return f"files/{digest.hexdigest()}"

    def documents(self) -> Iterator[Document]:
        for path in self._files:
            for name, text in read_file(path, wanted=self._options.text, documents=self._options.documents):
                yield Document(text=text, name=name)
