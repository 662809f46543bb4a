"""The sources of the Python standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext
from muse_core.errors import DataError
from muse_text_sources.options import PythonLibraryOptions

LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


class PythonLibrary:
    """Every .py file of the running Python's library, in the order of paths; tests, installed packages and
    empty files left out. The ``packages`` that are asked for follow one after the other."""

    def __init__(self, options: PythonLibraryOptions, context: SourceContext) -> None:
        self._library = Path(sysconfig.get_path("stdlib"))
        self._files = [(name, self._library / name) for name in _sources(self._library)]
        if not self._files:
            raise DataError(
                f"{self._library}: this Python has no library sources there: choose another source, such as "
                'data.use = "state-of-the-union"'
            )
        for package in options.packages:
            folder = _folder(package)
            self._files += [(f"{package}/{name}", folder / name) for name in _sources(folder)]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, path in self._files:
            digest.update(f"{name}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return f"python-library/{digest.hexdigest()}"

    def documents(self) -> Iterator[Document]:
        for name, path in self._files:
            try:
                with tokenize.open(path) as file:
                    text = file.read()
            except (SyntaxError, UnicodeDecodeError):  # an encoding that is unknown, or not the file's
                continue
            if text:
                yield Document(text=text, name=name)


def _sources(folder: Path) -> list[str]:
    """The names of the .py files below ``folder``, sorted."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = set(folders) - LEFT_OUT
        found += (Path(parent, name).relative_to(folder).as_posix() for name in files if name.endswith(".py"))
    return sorted(found)


def _folder(package: str) -> Path:
    """Where the sources of an installed package are; nothing is imported. Raises DataError where there are none."""
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"python-library: packages: there is no installed package {package!r} - give the names that are imported, "
            "without a dot"
        )
    return Path(next(iter(spec.submodule_search_locations)))
