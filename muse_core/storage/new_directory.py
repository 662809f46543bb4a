"""A new directory that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from muse_core.storage.disk import Disk, clear_leftovers, storage_errors, temporary


@contextmanager
def filled(target: Path, doing: str) -> Iterator[Path]:
    """A directory beside ``target`` that takes its place at the end, and goes where something is raised within. Raises
    StorageError, which says what was not done by ``doing`` ("write the export"), where it cannot be written."""
    partial = temporary(target)
    with storage_errors(doing, target), _named_as(target, partial):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(Disk(), target)
        partial.mkdir()
        try:
            yield partial
            if target.exists():
                target.rmdir()
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _named_as(target: Path, partial: Path) -> Iterator[None]:
    """A file that could not be written is named by where it was to be, not by where it is made."""
    try:
        yield
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else target
        if named.is_relative_to(partial):
            error.filename = str(target / named.relative_to(partial))
        raise
