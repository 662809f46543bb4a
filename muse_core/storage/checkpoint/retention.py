"""Which generations stay, and removing the others so that a crash never leaves half of one under its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muse_core.storage.checkpoint.generation import (
    COMMITTED,
    QUARANTINED,
    TEMPORARY,
    TRASH,
    Generation,
    folder_name,
    numbers,
)
from muse_core.storage.disk import Disk, remove_tree, sync_directory

KEEP_CERTIFIED = 2


def kept(generations: Sequence[Generation], keep: int) -> set[int]:
    """Numbers to keep: the ``keep`` newest and the two newest certified; of abandoned branches none."""
    alive = sorted((one for one in generations if not one.abandoned), key=lambda one: one.number, reverse=True)
    certified = [one.number for one in alive if one.certified]
    return {one.number for one in alive[:keep]} | set(certified[:KEEP_CERTIFIED])


def remove(disk: Disk, directory: Path, discarded: Sequence[int]) -> None:
    """Removes committed generations: all are renamed, durably, before the first file goes."""
    if not discarded:
        return
    for number in discarded:
        disk.rename(directory / folder_name(number), directory / folder_name(number, TRASH))
    sync_directory(disk, directory)
    for number in discarded:
        remove_tree(disk, directory / folder_name(number, TRASH))


def remove_leftovers(disk: Disk, directory: Path) -> None:
    """Removes what interrupted commits and removals left."""
    for kind in (TEMPORARY, TRASH):
        for number in numbers(directory, kind):
            remove_tree(disk, directory / folder_name(number, kind))


def quarantine(disk: Disk, directory: Path, number: int) -> Path:
    """Sets a damaged generation aside under another name, for a person to look at."""
    target = directory / folder_name(number, QUARANTINED)
    disk.rename(directory / folder_name(number), target)
    sync_directory(disk, directory)
    return target


def next_number(directory: Path) -> int:
    """One more than any number that was ever seen here."""
    return max(numbers(directory, COMMITTED, TEMPORARY, TRASH, QUARANTINED), default=0) + 1
