"""The directory of one run: its layout, who may write there, and what may start in it. Imports no torch."""

from __future__ import annotations

import difflib
import fnmatch
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from muse_core.errors import RecipeError, StorageError, typed
from muse_core.storage.directory_lock import LOCK, RunLock
from muse_core.storage.disk import (
    Disk,
    HeldDisk,
    inside,
    make_directory,
    read_file,
    remove_tree,
    storage_errors,
    write_file_atomically,
)

MAX_RECIPE_BYTES = 4 * 2**20
STARTED = (
    "recipe.toml", "muse.lock.toml", "source.toml", "tokenizer.json", "metrics.jsonl", "events.jsonl", "checkpoints",
    "stages", "tensorboard",
)
"""What a run writes before its first checkpoint."""

ENDED = ("summary.json", "held_out.json", "evaluation-*.json", "report.html", "report.json", "pictures")
"""What it writes at the end of a stage or its own; patterns."""


class RunDirectory:
    """A locked run directory; a context manager that lets the lock go.

    Made by ``create`` for a new run and by ``open`` to go on with one. Raises StorageError naming what is wrong.
    """

    def __init__(self, path: Path, disk: Disk, lock: RunLock, made: Sequence[Path] = ()):
        self.path = path
        self.disk = disk
        self._lock = lock
        self._made = tuple(made)

    @classmethod
    def create(
        cls, path: Path | str, *, source: str, recipe: str, lock: str, tokenizer: str | None = None,
        disk: Disk | None = None,
    ) -> RunDirectory:
        """Claims a directory for a new run and begins it: ``claim``, then ``begin``."""
        self = cls.claim(path, recipe, disk=disk)
        try:
            self.begin(source=source, recipe=recipe, lock=lock, tokenizer=tokenizer)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def claim(cls, path: Path | str, recipe: str, *, disk: Disk | None = None) -> RunDirectory:
        """Locks a directory for a new run of the resolved recipe ``recipe``, before the work of preparing it.

        The directory may exist and hold other things, but no run, and nothing that a run would write over or that a
        start which fails would remove. Nothing makes it a run until ``begin``.
        """
        begun = os.path.lexists(Path(path) / LOCK)
        self = cls._claim(Path(path), disk or Disk(), new=True)
        try:
            self._refuse_other_run(recipe)
            if not begun:
                self._refuse_files_of_others()
        except BaseException:
            if not begun:
                with storage_errors("remove the lock of", self.path):
                    self._lock.remove()
            self.close()
            raise
        return self

    @classmethod
    def claim_named(cls, name: str, recipe: str, *, disk: Disk | None = None) -> RunDirectory:
        """``claim`` of a new directory ``runs/<name>-<time>``; of runs started in one second the later ones have a
        number more."""
        disk = disk or Disk()
        stem = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        path, number = stem, 1
        made = [] if stem.parent.exists() else [stem.parent.absolute()]
        while True:
            with storage_errors("make a run directory", path):
                make_directory(disk, path.parent)
                try:
                    disk.mkdir(path)
                    break
                except FileNotFoundError:
                    continue  # another start failed, and removed the folder that it had made
                except FileExistsError:
                    number += 1
                    path = stem.with_name(f"{stem.name}-{number}")
        self = cls.claim(path, recipe, disk=disk)
        self._made = (self.path, *made)
        return self

    def begin(self, *, source: str, recipe: str, lock: str, tokenizer: str | None = None) -> None:
        """Writes the recipe as given, as resolved, its lock and its tokenizer's description. The resolved recipe makes
        this directory a run, so it comes last."""
        self.write("source.toml", source)
        if tokenizer is not None:
            self.write("tokenizer.json", tokenizer)
        self.write("muse.lock.toml", lock)
        self.write("recipe.toml", recipe)

    @classmethod
    def open(cls, path: Path | str, *, disk: Disk | None = None) -> RunDirectory:
        """Claims the directory of an existing run."""
        self = cls._claim(Path(path), disk or Disk(), new=False)
        if not self.recipe.is_file():
            self.close()
        require_run(Path(path), to=" to resume")
        return self

    @property
    def source(self) -> Path:
        """The recipe as given."""
        return self.path / "source.toml"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def lock(self) -> Path:
        """Versions and digests of everything the run depends on."""
        return self.path / "muse.lock.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def write(self, name: str, content: str | bytes) -> Path:
        """Writes a file of this directory atomically and durably; ``name`` may have folders, which are made."""
        self.check()
        target = inside(self.path, self.path / name)
        data = content.encode() if isinstance(content, str) else content
        with storage_errors("write", target):
            make_directory(self.disk, target.parent)
            write_file_atomically(self.disk, target, data)
        return target

    def check(self) -> None:
        """Raises StorageError when this process no longer holds the directory: it or its lock was moved or removed."""
        with storage_errors("look at the run directory", self.path):
            self._lock.check()

    def withdraw(self) -> None:
        """Removes what a start that failed has written, and folders made for it, so that another may begin here. A run
        that has a checkpoint or a finished stage is left as it is, and so is everything that no start writes."""
        self.check()
        if any(self.checkpoints.glob("gen-*")) or any(self.path.glob("stages/*/recipe.toml")):
            return
        with storage_errors("remove a run that could not start", self.path):
            for name in STARTED:
                if os.path.lexists(self.path / name):
                    remove_tree(self.disk, self.path / name)
            self._lock.remove()
            for folder in self._made:
                try:
                    self.disk.rmdir(folder)
                except OSError:  # it holds something else by now
                    break

    def close(self) -> None:
        """Lets the directory go."""
        self._lock.release()
        if isinstance(self.disk, HeldDisk):
            self.disk.let_go()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def _claim(cls, path: Path, disk: Disk, *, new: bool) -> RunDirectory:
        missing: list[Path] = []
        with storage_errors("use this run directory", path):
            if new:
                missing = [folder for folder in (path, *path.parents) if not folder.exists()]
                make_directory(disk, path)
            else:
                require_directory(path)
        real = Path(os.path.realpath(path))
        lock = RunLock(real, disk)
        if type(disk) is Disk:  # a test's own keeps its behaviour
            with storage_errors("use this run directory", real):
                disk = HeldDisk(real)
        return cls(real, disk, lock, [Path(os.path.abspath(folder)) for folder in missing])

    def _refuse_other_run(self, recipe: str) -> None:
        with storage_errors("read", self.recipe):
            found = read_file(self.recipe, limit=MAX_RECIPE_BYTES) if os.path.lexists(self.recipe) else None
        if found is None:
            left = [path.name for path in (self.checkpoints, self.metrics, self.events) if os.path.lexists(path)]
            if left:
                raise StorageError(
                    f"{self.path}: has {left[0]} of a run whose recipe.toml is missing - choose another run directory"
                )
        elif found == recipe.encode():
            raise StorageError(
                f"{self.path}: already holds a run of this recipe - continue it with --resume {typed(self.path)}, "
                "or choose another run directory"
            )
        else:
            raise StorageError(
                f"{self.path}: holds a run of another recipe - choose another run directory, or continue that run "
                f"with --resume {typed(self.path)}"
            )

    def _refuse_files_of_others(self) -> None:
        """Where no start has been: nothing here may have a name that a run gives to its own files."""
        with storage_errors("look into the run directory", self.path):
            there = sorted(os.listdir(self.path))
        found = [name for name in there if any(fnmatch.fnmatchcase(name, own) for own in (*STARTED, *ENDED))]
        if found:
            raise StorageError(
                f"{self.path}: has {found[0]}, which is of no run and which one would write over - choose another run "
                "directory"
            )


MOST_NAMED = 3
"""Runs that an error names."""


def require_run(path: Path, *, asked_by: str = "", to: str = "") -> None:
    """Raises StorageError for a path that holds no run; it names some runs below. ``asked_by`` stands before it."""
    if (path / "recipe.toml").is_file():
        return
    before = f"{asked_by}: " if asked_by else ""
    raise StorageError(
        f"{before}{path}: holds no run (it has no recipe.toml) - name the directory of a run{to}{_such_as(path)}"
    )


def refuse_run(folder: Path, *, asked_by: str = "--output") -> None:
    """Raises RecipeError for a folder that holds a run: a report of other runs there would replace the run's own
    files."""
    if os.path.lexists(folder / "recipe.toml"):
        raise RecipeError(f"{asked_by}: {folder}: holds a run - choose another folder")


def require_directory(path: Path) -> None:
    """Raises StorageError where there is no directory in which a run could go on; whether it holds one is seen once it
    is claimed."""
    if not path.is_dir():
        raise StorageError(
            f"{path}: there is no such run directory - name the directory of a run to resume{_such_as(path)}"
        )


def _such_as(path: Path) -> str:
    """Some runs below a folder, the newest first; where there is none of this name, those beside it of a name like
    it."""
    if os.path.lexists(path):
        named = [str(one) for one in reversed(runs_below(path, depth=2))]
    else:
        beside = {one.name: str(one) for one in runs_below(path.parent, depth=1)}
        named = [beside[name] for name in difflib.get_close_matches(path.name, beside, MOST_NAMED)]
    return f", such as {', '.join(named[:MOST_NAMED])}" if named else ""


def runs_below(path: Path, depth: int) -> list[Path]:
    """The runs in a folder and in its folders (a comparison has one for each variant), in the order of their begin."""
    try:
        folders = [one for one in path.iterdir() if one.is_dir() and not one.is_symlink()]
    except OSError:  # not a folder, or one that may not be read
        return []
    found = []
    for folder in sorted(folders):
        if all(os.path.isfile(folder / name) for name in ("recipe.toml", "muse.lock.toml")):
            found.append(folder)
        elif depth > 1:
            found += runs_below(folder, depth=depth - 1)
    return sorted(found, key=_begun)


def _begun(run: Path) -> float:
    """When a run began, in seconds since 1970; 0 where it was taken back meanwhile, as a start that fails is."""
    try:
        return (run / "muse.lock.toml").stat().st_mtime
    except OSError:
        return 0.0
