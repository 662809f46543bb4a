"""Promise C2: whatever a power failure leaves of what was written, nothing acknowledged is lost or corrupt."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from muse_core.metrics.jsonl import Records
from muse_core.selftest.reliability.disks import Call, RecordingDisk
from muse_core.selftest.reliability.restarts import RUN, Restarts
from muse_core.selftest.reliability.simulated_disk import SimulatedDisk, Tree
from muse_core.storage.checkpoint import Checkpoints, Snapshot
from muse_core.storage.run_directory import RunDirectory

KEEP = 2
RECIPE = 'name = "experiment"\n'


@attrs.frozen
class Recording:
    """What a run wrote, in order, and what its checkpoints held."""

    calls: list[Call]
    hashes: dict[int, str]
    """Generation → state hash."""


@attrs.define
class Promised:
    """What the run had acknowledged at the moment of the crash."""

    created: bool = False
    generation: int = 0
    certified: set[int] = attrs.field(factory=set)
    abandoned: set[int] = attrs.field(factory=set)
    events: int = 0
    metrics: int = 0

    def note(self, what: dict[str, Any]) -> None:
        for name, value in what.items():
            if isinstance(value, set):
                getattr(self, name).update(value)
            else:
                setattr(self, name, value)


@attrs.frozen
class Findings:
    """Result of an exploration."""

    states: int
    distinct: int
    """How many of them differ in what is left or in what had been promised."""
    problems: list[str]
    """One sentence for each state in which a promise is broken, with what replays it."""


def snapshot(step: int, seed: int = 0) -> Snapshot:
    """A small snapshot with every peculiarity: several dtypes, no elements, no axes."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    weight = torch.randn(6, 5, generator=generator)
    return Snapshot(
        step,
        model={"weight": weight, "half": weight.to(torch.bfloat16), "none": torch.empty(0, 3)},
        optimizer={"moment": weight.square(), "count": torch.tensor(float(step))},
        state={"random": torch.randint(0, 256, (64,), generator=generator, dtype=torch.uint8)},
        json={"cursor": step, "statistics": {"median": 1 / (step + 1)}},
    )


def record(folder: Path, *, commits: int = 6, forgets: Callable[[Call], bool] = lambda call: False) -> Recording:
    """Runs everything a run writes, into ``folder``: commits, certificates, a rollback, events and metrics."""
    disk = RecordingDisk(folder, forgets)
    hashes: dict[int, str] = {}
    with RunDirectory.create(folder / RUN, source=RECIPE, recipe=RECIPE, lock="", disk=disk) as run:
        disk.mark(created=True)
        records = Records(run.path, disk)
        checkpoints = Checkpoints(run.path, keep=KEEP, disk=disk)
        for step in range(commits):
            records.metrics({"event": "train", "step": step, "loss": 1 / (step + 1)})
            records.metrics({"event": "eval", "step": step})
            records.event({"event": "note", "step": step})
            disk.mark(events=step + 1)
            content = snapshot(step)
            # Known before the commit: a generation may survive although the crash came before it was acknowledged.
            hashes[step + 1] = content.state_hash()
            generation = checkpoints.commit(content, certified=step % 3 == 0)
            assert generation.number == step + 1
            disk.mark(generation=generation.number, certified={generation.number} if generation.certified else set())
            records.sync()
            disk.mark(metrics=2 * step + 2)
            if step % 3 == 1:
                checkpoints.certify(generation)
                disk.mark(certified={generation.number})
            if step == commits // 2:
                target = checkpoints.certified_before(step - 1)
                assert target is not None
                disk.mark(generation=target[0].number)
                disk.mark(abandoned=set(checkpoints.abandon(after=target[0].number, through=generation.number)))
        records.close()
    return Recording(disk.calls, hashes)


def explore(
    recording: Recording,
    *,
    states: int,
    seed: int,
    defects: bool = False,
    only: int | None = None,
    enough: int = 20,
) -> Findings:
    """Crashes after every recorded call, in ``states`` ways altogether, and checks every promise in what is left.

    ``defects`` also damages one file of the newest generation, which hashes have to notice. ``only`` looks at one state
    again. Stops after ``enough`` problems.
    """
    disk = SimulatedDisk()
    promised = Promised()
    problems: list[str] = []
    looked_at = 0
    seen: set[tuple[int, int]] = set()
    promises = 0
    # A memory file system where there is one: the experiment decides what is durable, not this disk.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        restarts = Restarts(Path(folder))
        for index, call in enumerate(recording.calls):
            disk.apply(call)
            if call.kind == "mark":
                promised.note(call.value)
                promises += 1
            first = states * index // len(recording.calls)
            for state in range(first, states * (index + 1) // len(recording.calls)):
                if only not in (None, state):
                    continue
                rng = random.Random(f"{seed}/{state}")
                tree = disk.crash(rng)
                damaged = _damage_newest(tree, rng) if defects else None
                looked_at += 1
                seen.add((promises, hash(frozenset(tree.items()))))
                if problem := _broken_promise(restarts, tree, promised, recording.hashes, damaged):
                    where = f"seed {seed}, state {state}, after call {index} ({call.kind} {call.path})"
                    problems.append(f"{where}: {problem}")
                    if len(problems) >= enough:
                        return Findings(looked_at, len(seen), problems)
    return Findings(looked_at, len(seen), problems)


def _broken_promise(
    restarts: Restarts, tree: Tree, promised: Promised, hashes: dict[int, str], damaged: int | None
) -> str | None:
    """What is wrong with what a restart finds, or None."""
    if promised.created and tree.get(f"{RUN}/recipe.toml") != RECIPE.encode():
        return "the recipe is lost"
    found = restarts.checkpoints(tree)
    if found.error:
        return f"nothing can be loaded: {found.error}" if damaged is None or found.resumable - {damaged} else None
    if found.number and found.state_hash != hashes[found.number]:
        return f"generation {found.number} was loaded with another content"
    if found.number in promised.abandoned:
        return f"generation {found.number} was loaded although a rollback had left it"
    if found.number < promised.generation and damaged is None:
        return f"generation {promised.generation} was acknowledged and {found.number} was loaded"
    if incomplete := set(found.incomplete) - {damaged}:
        number = max(incomplete)
        return f"generation {number} stands there incomplete: {found.incomplete[number]}"
    if uncertain := [number for number in promised.certified if not found.certified.get(number, True)]:
        return f"generation {uncertain[0]} lost its certificate"
    if (events := restarts.events(tree)) < promised.events:
        return f"{promised.events} events were acknowledged and {events} are left"
    if (rows := restarts.metrics(tree)) < promised.metrics:
        return f"{promised.metrics} rows of metrics were synced and {rows} are left"
    return None


def _damage_newest(tree: Tree, rng: random.Random) -> int | None:
    """Flips a bit or cuts the end of one file of the newest generation; returns its number."""
    folders = sorted({path.split("/")[2] for path in tree if path.startswith("run/checkpoints/gen-")})
    files = [path for path, content in tree.items() if folders and f"/{folders[-1]}/" in path and content]
    files = [path for path in files if path.endswith((".safetensors", "state.json", "MANIFEST.json"))]
    if not files:
        return None
    path = rng.choice(sorted(files))
    content = bytearray(tree[path] or b"")
    if rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del content[rng.randrange(len(content)) :]
    tree[path] = bytes(content)
    return int(folders[-1][4:])


def main(arguments: Sequence[str] | None = None) -> int:
    """The long form, and the replay of one state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--commits", type=int, default=12)
    parser.add_argument("--only", type=int, help="look at this state alone")
    parser.add_argument("--defects", action="store_true", help="damage the newest generation as well")
    chosen = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp())
    try:
        recording = record(folder, commits=chosen.commits)
    finally:
        shutil.rmtree(folder)
    found = explore(recording, states=chosen.states, seed=chosen.seed, defects=chosen.defects, only=chosen.only)
    looked_at = f"{found.states} states ({found.distinct} distinct) after {len(recording.calls)} calls"
    print(f"{looked_at}, seed {chosen.seed}: {len(found.problems)} problems")
    for problem in found.problems:
        print(problem)
    return 1 if found.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
