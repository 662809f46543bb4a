"""The sources of the Python standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext
from muse_core.errors import DataError
from muse_text_sources.options import PythonLibraryOptions

LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


class PythonLibrary:
    """Every .py file of the running Python's library, in the order of paths; tests, installed packages and
    empty files left out."""

    def __init__(self, options: PythonLibraryOptions, context: SourceContext) -> None:
        self._folder = Path(sysconfig.get_path("stdlib"))
        self._paths = sorted(path.relative_to(self._folder).as_posix() for path in _sources(self._folder))
        if not self._paths:
            raise DataError(
                f"{self._folder}: this Python has no library sources there: choose another source, such as "
                'data.use = "state-of-the-union"'
            )

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self._paths:
            digest.update(f"{path}\0".encode())
            digest.update(hashlib.sha256((self._folder / path).read_bytes()).digest())
        return f"python-library/{digest.hexdigest()}"

    def documents(self) -> Iterator[Document]:
        for path in self._paths:
            with tokenize.open(self._folder / path) as file:
                text = file.read()
            if text:
                yield Document(text=text, name=path)


def _sources(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = set(folders) - LEFT_OUT
        yield from (Path(parent, name) for name in files if name.endswith(".py"))
