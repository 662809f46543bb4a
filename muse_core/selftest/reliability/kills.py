"""Promise C1: a run that is killed at random moments loses no acknowledged checkpoint and computes the same numbers.

Children are forked after import and one warm-up step, so that a kill costs milliseconds. A small model with dropout
and AdamW trains; every child resumes where the last one was killed.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch

from muse_core import fault_injection
from muse_core.metrics.jsonl import Records, read_rows
from muse_core.selftest.reliability.disks import VolatileDisk
from muse_core.storage.checkpoint import Checkpoints, Snapshot
from muse_core.storage.run_directory import RunDirectory

STEPS, COMMIT_EVERY, SEED = 48, 3, 5
_SHARED = struct.Struct("qq")
"""Whether a commit is going on; the newest acknowledged generation."""


@attrs.frozen
class Findings:
    """Result of an experiment."""

    kills: int
    inside_commit: int
    """Kills that fell between the start of a commit and its acknowledgement."""
    runs: int
    """Runs that got to their end."""
    problems: list[str]


class Trainer:
    """A complete training state in miniature."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 8))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.step = 0

    def train_step(self) -> float:
        """One step on data that depends on the step alone; returns the loss."""
        inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(self.step))
        loss = (self.model(inputs) - inputs.roll(1, dims=1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return float(loss.item())

    def snapshot(self) -> Snapshot:
        moments = self.optimizer.state_dict()["state"]
        optimizer = {f"{index}.{name}": value for index, one in moments.items() for name, value in one.items()}
        return Snapshot(
            self.step, self.model.state_dict(), optimizer, {"random": torch.get_rng_state()}, {"seed": SEED}
        )

    def restore(self, snapshot: Snapshot) -> None:
        self.model.load_state_dict(snapshot.model)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in snapshot.optimizer.items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        torch.set_rng_state(snapshot.state["random"])
        self.step = snapshot.step


class Shared:
    """Memory of parent and child: what the child was doing when it was killed."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _SHARED.size)

    def set(self, *, committing: bool, acknowledged: int) -> None:
        self._map[:] = _SHARED.pack(committing, acknowledged)

    def get(self) -> tuple[bool, int]:
        committing, acknowledged = _SHARED.unpack(self._map[:])
        return bool(committing), acknowledged


def train(run_directory: Path, shared: Shared) -> None:
    """Resumes a run and trains it to its end."""
    disk = VolatileDisk()
    with RunDirectory.open(run_directory, disk=disk) as run:
        records = Records(run.path, disk)
        checkpoints = Checkpoints(run.path, keep=2, disk=disk)
        trainer = Trainer()
        found = checkpoints.newest()
        acknowledged = 0
        if found is not None:
            trainer.restore(found[1])
            acknowledged = found[0].number
        while trainer.step < STEPS:
            step = trainer.step
            records.metrics({"event": "train", "step": step, "loss": trainer.train_step()})
            if trainer.step % COMMIT_EVERY == 0:
                shared.set(committing=True, acknowledged=acknowledged)
                records.sync()
                acknowledged = checkpoints.commit(trainer.snapshot()).number
                shared.set(committing=False, acknowledged=acknowledged)
        records.close()


def reference() -> tuple[list[float], dict[int, str]]:
    """Losses of an undisturbed run, and the state hash at every step at which it would commit."""
    trainer = Trainer()
    losses, hashes = [], {}
    while trainer.step < STEPS:
        losses.append(trainer.train_step())
        hashes[trainer.step] = trainer.snapshot().state_hash()
    return losses, hashes


def experiment(folder: Path, *, kills: int, seed: int) -> Findings:
    """Kills children at random moments until ``kills`` have hit, and checks what each kill left."""
    torch.set_num_threads(1)
    losses, hashes = reference()
    rng = random.Random(seed)
    shared = Shared()
    began = time.perf_counter()
    _new_run(folder / "warm-up")
    train(folder / "warm-up", shared)
    span = time.perf_counter() - began
    hit = inside = finished = 0
    problems: list[str] = []
    run = folder / "run-0"
    _new_run(run)
    shared.set(committing=False, acknowledged=0)
    while hit < kills and not problems:
        child = fork(lambda run=run: train(run, shared))  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, span / 2))
        killed = _kill(child)
        where = f"seed {seed}, kill {hit}, {run.name}"
        if killed == 0:
            finished += 1
            problems += [f"{where}: {problem}" for problem in _differences(run, losses)]
            run = folder / f"run-{finished}"
            _new_run(run)
            shared.set(committing=False, acknowledged=0)
        elif killed == signal.SIGKILL:
            hit += 1
            committing, acknowledged = shared.get()
            inside += committing
            problems += [f"{where}: {problem}" for problem in _lost(run, acknowledged, hashes)]
            # The child that was killed may not have got as far as taking over what the one before acknowledged.
            shared.set(committing=False, acknowledged=acknowledged)
        else:
            problems.append(f"{where}: the child failed by itself")
    return Findings(hit, inside, finished, problems)


def kill_at(folder: Path, point: str) -> list[str]:
    """Kills a run at a fault point of its third commit, resumes it, and says what differs from an undisturbed run."""
    losses, hashes = reference()
    shared = Shared()
    _new_run(folder)
    countdown = [3]

    def die(value: object) -> object:
        countdown[0] -= 1
        if countdown[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    def doomed() -> None:
        with fault_injection.installed({point: die}):
            train(folder, shared)

    if _wait(fork(doomed)) != signal.SIGKILL:
        return [f"{point} was not reached"]
    problems = _lost(folder, shared.get()[1], hashes)
    train(folder, shared)
    return [f"{point}: {problem}" for problem in problems + _differences(folder, losses)]


def fork(work: Callable[[], None]) -> int:
    """Starts a child that does ``work`` and ends; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _new_run(path: Path) -> None:
    RunDirectory.create(path, source="", recipe='name = "kills"\n', lock="", disk=VolatileDisk()).close()


def _kill(child: int) -> int:
    os.kill(child, signal.SIGKILL)
    return _wait(child)


def _wait(child: int) -> int:
    """0 if the child came to its end, the signal that killed it, or −1."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    return 0 if os.WEXITSTATUS(status) == 0 else -1


def _lost(run: Path, acknowledged: int, hashes: dict[int, str]) -> list[str]:
    """What is wrong with the newest checkpoint after a kill."""
    found = Checkpoints(run).newest(quarantine=False)
    if found is None:
        return [f"generation {acknowledged} is lost"] if acknowledged else []
    generation, snapshot = found
    if generation.number < acknowledged:
        return [f"generation {acknowledged} was acknowledged and {generation.number} was loaded"]
    if snapshot.state_hash() != hashes[snapshot.step]:
        return [f"generation {generation.number} differs from the undisturbed run at step {snapshot.step}"]
    return []


def _differences(run: Path, losses: list[float]) -> list[str]:
    """Where the losses of a run that got to its end differ from the undisturbed ones; of repeated steps the last."""
    found = {row["step"]: row["loss"] for row in read_rows(run / "metrics.jsonl")}
    wrong = [step for step, loss in enumerate(losses) if found.get(step) != loss]
    return [f"loss differs at step {wrong[0]}"] if wrong else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment and prints what replays it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = experiment(Path(folder), kills=chosen.kills, seed=chosen.seed)
        points = sorted(point for point in fault_injection.POINTS if point.startswith("commit."))
        at_points = [problem for point in points for problem in kill_at(Path(folder) / point, point)]
    print(
        f"seed {chosen.seed}: {found.kills} kills, {found.inside_commit} inside a commit, "
        f"{found.runs} runs finished, {len(found.problems)} problems"
    )
    print(f"{len(points)} kills at named points of a commit, {len(at_points)} problems")
    for problem in found.problems + at_points:
        print(problem)
    return 1 if found.problems or at_points or found.inside_commit < found.kills / 5 else 0


if __name__ == "__main__":
    raise SystemExit(main())
