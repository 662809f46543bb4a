"""Runs of two processes that are stopped, at random steps by a signal to a random rank, and gone on with: by two they
must end in the bits of the run that was not stopped; by one, two or four every start must have the saved state.

``python -m muse_core.selftest.reliability.stops --runs 40 --seed S``; see ``reliability.processes`` for how they start.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from muse_core.metrics.jsonl import read_rows
from muse_core.selftest.reliability.processes import (
    DENSE,
    RECIPE,
    Start,
    at_call,
    long_form,
    on,
    prepared,
    run_start,
    signalled,
)
from muse_core.storage.checkpoint import Checkpoints

STEPS = 8
WAYS = {
    "copies": (),
    "divided": ("--set=parallel.data=1", '--set=parallel.shard="auto"', "--set=checkpoint.background=true"),
}
"""How a run is divided → what its first start is told."""


def ended(folder: Path) -> tuple[list[float], str]:
    """Losses by step, and the hash of the last state."""
    losses = {row["step"]: row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["event"] == "train"}
    hashes = {one.step: one.state_hash for one in Checkpoints(folder).generations()}
    return [losses[step] for step in sorted(losses)], hashes[STEPS]


def trained(
    folder: Path, recipe: Path, name: str, way: str, stops: Sequence[tuple[int, int, int]], last: int = 2
) -> list[str]:
    """What is wrong with how the starts of a run end. ``stops``: processes of a start, the rank that gets a signal, and
    after how many further steps; after them ``last`` processes train to the end."""
    problems = []
    for number, (ranks, rank, after) in enumerate([*stops, (last, -1, 0)]):
        arguments = ("--resume", str(folder / name)) if number else (str(recipe), "--run-dir", str(folder / name))
        start = Start(
            ranks=ranks, arguments=(*arguments, "--no-report", *(() if number else WAYS[way])),
            fault=on(rank, post_step=at_call(after, signalled(signal.SIGTERM))),
        )
        found = run_start(start, folder)
        due = 0 if rank < 0 else 128 + signal.SIGTERM
        if found["codes"] != [due] * ranks:
            problems.append(f"{name}: start {number} of {ranks}: {found['codes']}, said {found['said'][0][-400:]!r}")
            break
    return problems


def experiment(folder: Path, *, runs: int, seed: int) -> list[str]:
    """Problems of so many runs, by turns of copies and of divided weights, each with two stops; every second pair
    changes its number of processes."""
    recipe = folder / "recipe.toml"
    table = RECIPE.format(cache=folder / "cache", block=DENSE).replace("depth = 1", "depth = 1\ndropout = 0.1")
    recipe.write_text(table)
    prepared(folder, recipe)
    problems, whole = [], {}
    for way in WAYS:
        problems += trained(folder, recipe, way, way, ())
        whole[way] = ended(folder / way)
    chance = random.Random(seed)
    for number in range(runs):
        way, same = list(WAYS)[number % 2], number % 4 < 2
        name = f"run {number} ({way})"
        sizes = [2, 2, 2] if same else [2, chance.choice((1, 4)), chance.choice((1, 2, 4))]
        stops = [(ranks, chance.randrange(ranks), chance.randrange(3)) for ranks in sizes[:2]]
        found = trained(folder, recipe, name, way, stops, sizes[2])
        problems += found
        if same and not found and ended(folder / name) != whole[way]:
            problems.append(f"{name}: stopped {stops}, and the losses or the last state are others")
        shutil.rmtree(folder / name, ignore_errors=True)
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment and prints what replays it."""
    return long_form(__doc__, experiment, "runs", "runs of several processes stopped twice", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
