"""What a run keeps of its text: the tokenizer, in its directory, and the digests in its lock. Opening a run reads
these and no corpus. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from muse_core.data.options import OfRunOptions
from muse_core.data.tokenizer import Tokenizer
from muse_core.data.tokenizers import Bytes, ByteTokenizer, from_json, given
from muse_core.errors import RecipeError, StorageError
from muse_core.recipe.lock import Lock, not_as_made, read_lock
from muse_core.storage.disk import read_file, storage_errors
from muse_core.storage.run_directory import require_run

TOKENIZER = "tokenizer.json"
LOCK = "muse.lock.toml"
MAX_BYTES = 512 * 2**20
ASKED_BY = "the tokenizer of a run (data.tokenizer.from, by default init.from)"


@attrs.frozen(kw_only=True, eq=False)
class Kept:
    """What one architecture of a run keeps."""

    folder: Path
    lock: Lock
    tokenizer: Tokenizer
    tokenizer_digest: str
    """SHA-256 of its description, as the lock has it."""

    @property
    def data_digest(self) -> str:
        """Digest of the encoded text, as the lock has it."""
        return str(self.lock.table["digests"]["data"])


def newest_folder(run: Path) -> Path:
    """The folder of the last architecture that a finished stage made; the run's own when none did."""
    finished = sorted((run / "stages").glob("*/recipe.toml"), key=lambda path: stage_number(path.parent))
    return finished[-1].parent if finished else run


def stage_number(folder: Path) -> int:
    """Number of the stage that made the architecture in ``folder``."""
    return int(folder.name.partition("-")[0])


def lock_in(folder: Path) -> Lock:
    """The lock in the folder of an architecture of a run. Raises StorageError when it is missing or damaged."""
    if not (folder / LOCK).is_file():
        raise StorageError(f"{folder}: has no {LOCK}, which says what its weights belong to - restore it from a copy")
    try:
        return read_lock(folder / LOCK)
    except RecipeError as error:
        raise StorageError(f"{folder}: its lock cannot be used: {error}") from error


def read_kept(folder: Path) -> Kept:
    """The lock and the tokenizer in the folder of an architecture of a run, compared with each other.

    Runs made before the tokenizer was kept are opened where it is that of bytes, which has one form. Raises
    StorageError when one is missing, damaged or does not belong to the other, RecipeError when the plugin that made the
    tokenizer is not here.
    """
    lock = lock_in(folder)
    due = lock.table.get("digests", {}).get("tokenizer")
    if not isinstance(due, str) or not isinstance(lock.table["digests"].get("data"), str):
        raise StorageError(f"{folder / LOCK}: holds no digests of data and tokenizer - restore it from a copy")
    path = folder / TOKENIZER
    if not path.exists():
        plain = ByteTokenizer()
        if plain.digest == due:
            return Kept(folder=folder, lock=lock, tokenizer=plain, tokenizer_digest=due)
        raise StorageError(
            f"{path}: is missing - restore it from a copy; for a run that an older version made, muse-run --resume "
            "writes it from the text"
        )
    with storage_errors("read the tokenizer", path):
        data = read_file(path, limit=MAX_BYTES)
    if hashlib.sha256(data).hexdigest() != due:
        raise StorageError(f"{path}: is not the tokenizer of the lock (digests.tokenizer) - restore it from a copy")
    try:
        tokenizer = from_json(data.decode(), chosen=_named_by(lock))
    except ValueError as error:
        problem = f"{path}: is not a tokenizer that this version knows: {error}"
        if sentence := not_as_made(lock):  # the recipe, which would name the plugins, is read with the tokenizer
            raise RecipeError([sentence, problem]) from error
        raise StorageError(problem) from error
    return Kept(folder=folder, lock=lock, tokenizer=tokenizer, tokenizer_digest=due)


def _named_by(lock: Lock) -> str:
    """The tokenizer as the recipe in a lock names it; empty where it names none."""
    data = lock.table["recipe"].get("data", {})
    tokenizer = data.get("tokenizer") if isinstance(data, dict) else None
    use = tokenizer.get("use") if isinstance(tokenizer, dict) else tokenizer
    return use if isinstance(use, str) else ""


def tokenizer_of(run: Path, *, asked_by: str) -> Tokenizer:
    """The tokenizer of a run's newest architecture. ``asked_by`` stands before messages. Raises StorageError."""
    require_run(run, asked_by=asked_by)
    try:
        return read_kept(newest_folder(run)).tokenizer
    except StorageError as error:
        raise StorageError(f"{asked_by}: {error}") from error


class OfRun(Bytes):
    """The tokenizer that a run keeps; see ``contracts.TokenizerMaker``."""

    def __init__(self, options: OfRunOptions, context: Any):
        self.options = options

    def identity(self) -> str:
        """The digest of that tokenizer. StorageError where there is no such run."""
        return given(self.make(()))

    def make(self, texts: Iterable[str]) -> Tokenizer:
        """Reads the run alone. StorageError where there is no such run, RecipeError where it is one on a task."""
        run = Path(self.options.from_)
        found = tokenizer_of(run, asked_by=ASKED_BY)
        if found.separator < 0:
            raise RecipeError(
                f"{ASKED_BY}: {run} is a run on a task, whose tokens stand for no text - name another one, as "
                'data.tokenizer = "bytes"'
            )
        return found
