"""What an export needs of the run and of where it goes."""

from __future__ import annotations

from pathlib import Path

from muse_core.data.tokenizers import Numbers
from muse_core.errors import RecipeError, StorageError
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
