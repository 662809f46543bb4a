"""Where the processes of a run meet before anything else. Imports torch only under a launcher of several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muse_core.errors import StorageError
from muse_core.parallel.environment import launched
from muse_core.parallel.one import ONE, Ranks

_MET: list[Any] = []
"""The processes of this run, for the place where errors end the process; empty in a run of one."""


@contextlib.contextmanager
def meeting() -> Iterator[Ranks]:
    """The processes of this run; inside, a failure of one ends all. Raises RecipeError or RankLost."""
    here = launched()
    if here is None:
        yield ONE
        return
    from muse_core.parallel.group import Group

    group = Group(here)
    _MET.append(group)
    with group.ending():
        yield group
        group.close()
    _MET.clear()


def told_to_others(sentence: str, code: int, error: BaseException | None) -> tuple[bool, int]:
    """What a command does last when it fails: tells the other processes. Returns whether this one is to say why, and
    its exit code."""
    if not _MET:
        return True, code
    said: tuple[bool, int] = _MET[0].failed(sentence, code, error)
    return said


def spoken_by() -> str:
    """Stands before a sentence on standard error: who says it, where that is not plain."""
    return f"rank {_MET[0].rank}: " if _MET and _MET[0].rank else ""


def agree_on_start(ranks: Ranks, told: Sequence[str], files: Sequence[Path | None]) -> None:
    """Raises RecipeError where a rank was started with other arguments, other files or other versions than rank 0."""
    if ranks.size == 1:
        return
    import hashlib
    import platform

    digests = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        for path in files if path is not None
    }
    versions = {name: _version(name) for name in ("muse-core", "muse-kernels", "torch", "triton", "numpy")}
    agree: Any = ranks.agree
    agree("version of python", platform.python_version(), "install the same on all hosts")
    agree("versions of packages", versions, "install the same on all hosts")
    agree("recipe", digests, "start all ranks with one recipe")
    agree("arguments", list(told), "start all ranks with the same arguments")


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def check_shared(ranks: Ranks, path: Path, held: str) -> None:
    """Raises StorageError when a rank does not see in the run directory the file by which rank 0 holds it."""
    import hashlib

    try:
        seen = hashlib.sha256((path / held).read_bytes()).hexdigest()
    except OSError:
        seen = ""
    values = ranks.gather(seen)
    if others := [rank for rank, value in enumerate(values) if value != values[0]]:
        raise StorageError(
            f"{path}: rank {others[0]} does not see what rank 0 wrote there - put the run directory on a file system "
            "that all hosts of the run share"
        )
