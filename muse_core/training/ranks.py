"""What each process does of what a run does once: rank 0 holds the directory, writes the records and speaks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from muse_core.errors import RecipeError
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import Records
from muse_core.model.precision import choose_device
from muse_core.parallel.meeting import check_shared
from muse_core.parallel.one import Ranks
from muse_core.parallel.sizes import sizes_of
from muse_core.recipe.lock import Lock
from muse_core.recipe.schema import Recipe
from muse_core.storage.checkpoint.tensor_file import fingerprint
from muse_core.storage.directory_lock import HOLDER
from muse_core.storage.disk import HeldDisk
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.setup import Setup
from muse_core.training.shards import NAMED, is_divided


class NoRecords:
    """The records of a rank other than 0: none."""

    attempt = 0
    cut_bytes = 0

    def metrics(self, row: Mapping[str, Any]) -> None:
        pass

    def event(self, row: Mapping[str, Any]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class FollowedDirectory(RunDirectory):
    """The run directory as a rank other than 0 sees it: it reads there, and of records and recipes writes nothing."""

    def __init__(self, path: Path):
        super().__init__(path, HeldDisk(path), None)

    def write(self, name: str, content: str | bytes) -> Path:
        return self.path / name

    def check(self) -> None:
        """Rank 0 does."""

    def withdraw(self) -> None:
        """Rank 0 does."""

    def close(self) -> None:
        self.disk.let_go()


def shown_by(ranks: Ranks) -> Display:
    """What a person sees: of rank 0 alone."""
    return Display() if ranks.rank == 0 else Display(Console(quiet=True))


def records_of(ranks: Ranks, directory: RunDirectory) -> Any:
    """The records that a rank writes."""
    return Records(directory.path, disk=directory.disk) if ranks.rank == 0 else NoRecords()


@contextlib.contextmanager
def held_by_first(ranks: Ranks, claim: Callable[[], RunDirectory]) -> Iterator[RunDirectory]:
    """The run directory, which rank 0 claims and holds until all are done with it. Raises StorageError where another
    rank does not see it."""
    if ranks.size == 1:
        with claim() as directory:
            yield directory
        return
    if ranks.rank == 0:
        with claim() as directory:
            ranks.gather(str(directory.path))
            check_shared(ranks, directory.path, HOLDER)
            yield directory
            ranks.gather("done")
        return
    path = Path(ranks.gather(None)[0])
    check_shared(ranks, path, HOLDER)
    with FollowedDirectory(path) as directory:
        yield directory
        ranks.gather("done")


def join(ranks: Ranks, recipe: Recipe) -> None:
    """Take the device of this rank and open the process groups. Raises RecipeError where devices are too few."""
    if ranks.size == 1:
        return
    device = choose_device(recipe.train.device)
    if device.type == "cuda":
        here = ranks.launched
        if here.local_size > torch.cuda.device_count():
            raise RecipeError(
                f"train.device: {here.local_size} processes on this host and {torch.cuda.device_count()} GPU(s) - "
                "start one process per GPU, or fewer"
            )
        torch.cuda.set_device(here.local_rank)
    ranks.join(device, sizes_of(recipe.parallel, ranks.size))


def agree_on_lock(ranks: Ranks, lock: Lock) -> None:
    """Raises RecipeError where a rank has other plugins, versions, data or kernels than rank 0."""
    if ranks.size == 1:
        return
    found = flattened({key: value for key, value in lock.table.items() if key not in ("recipe", "source")})
    found.pop("environment.platform", None)  # hosts may differ in their kernel
    ranks.agree("environment", found, "make plugins, versions, data and devices equal on all hosts")


def agree_on_weights(setup: Setup) -> None:
    """Raises RecipeError where a rank begins with other weights than rank 0; those of a divided model were compared
    when it was divided."""
    if setup.ranks.size == 1 or any(map(is_divided, setup.model.parameters())):
        return
    weights = {name: fingerprint(value).sha256 for name, value in setup.model.state_dict().items()}
    setup.ranks.agree("set of weights", weights, NAMED)


def flattened(table: Any, before: str = "") -> dict[str, str]:
    """Leaves of nested tables by path, as text."""
    if not isinstance(table, Mapping | list | tuple):
        return {before: str(table)}
    found: dict[str, str] = {}
    for key, value in table.items() if isinstance(table, Mapping) else enumerate(table):
        found |= flattened(value, f"{before}.{key}" if before else str(key))
    return found


def divided(setup: Setup) -> str:
    """How the work is divided, in words."""
    sizes = sizes_of(setup.recipe.parallel, setup.ranks.size)
    return f"{setup.ranks.size}: data {sizes.data}, shard {sizes.shard}, context {sizes.context}"


