"""What a launcher such as torchrun says in environment variables. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from muse_core.errors import RecipeError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launched(NamedTuple):
    """This process among those of its run."""

    rank: int
    size: int
    """Processes of the run."""
    local_rank: int
    """Among the processes of this host."""
    local_size: int
    """Processes on this host."""
    address: str
    """Host of the store through which the processes meet."""
    port: int


def launched(variables: Mapping[str, str] | None = None) -> Launched | None:
    """What the launcher says; None for a run of one process. Raises RecipeError for variables that do not fit."""
    there = os.environ if variables is None else variables
    size = there.get("WORLD_SIZE", "").strip()
    if size in ("", "1"):
        return None
    if missing := [name for name in VARIABLES if not there.get(name, "").strip()]:
        raise RecipeError(
            f"WORLD_SIZE = {size}, but {', '.join(missing)} not set: start several processes with torchrun or "
            "muse-run --processes N, or unset WORLD_SIZE for a run of one process"
        )
    numbers = {}
    for name in VARIABLES:
        if name == "MASTER_ADDR":
            continue
        try:
            numbers[name] = int(there[name])
        except ValueError:
            raise RecipeError(f"{name} = {there[name]!r} is not a whole number: start with torchrun") from None
    rank, world, local, here = (numbers[name] for name in VARIABLES[:4])
    if not (0 <= rank < world and 0 <= local < here <= world):
        raise RecipeError(
            f"RANK = {rank} of WORLD_SIZE = {world} and LOCAL_RANK = {local} of LOCAL_WORLD_SIZE = {here} do not fit "
            "together: start with torchrun"
        )
    return Launched(
        rank=rank, size=world, local_rank=local, local_size=here, address=there["MASTER_ADDR"],
        port=numbers["MASTER_PORT"],
    )
