"""Where an export goes: a new directory that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from muse_core.data.tokenizers import Numbers
from muse_core.errors import RecipeError, StorageError
from muse_core.storage.disk import Disk, clear_leftovers, storage_errors, temporary
from muse_core.training.setup import Setup


def require_free(target: Path) -> None:
    """Raises StorageError where ``target`` is there and is no empty directory, or is the one in which this runs: an
    export takes its place, and the shell would stand in what was removed."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target}: exists and is not an empty directory - name a new one")
    if target.exists() and target.samefile("."):
        raise StorageError(f"{target}: is the working directory, which cannot be exchanged - name a new one in it")


def require_text(setup: Setup, run: Path) -> None:
    """Raises RecipeError for the run of a task."""
    if isinstance(setup.corpus.tokenizer, Numbers):
        raise RecipeError(f"{run}: was trained on a task, whose tokens stand for no text, so that there is no "
                          "tokenizer to export")


@contextmanager
def filled(target: Path) -> Iterator[Path]:
    """A directory beside ``target`` that takes its place at the end, and goes where something is raised within. Raises
    StorageError where it cannot be written."""
    partial = temporary(target)
    with storage_errors("write the export", target), _named_as(target, partial):
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
