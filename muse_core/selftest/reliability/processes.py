"""Runs of several processes of which one is lost: it raises, is killed, stands still or is frozen, at a point and a
moment of its own. The others must end within a minute and name it.

torch is imported once and every process is a fork; this program holds the store through which they meet, as a launcher
does. ``python -m muse_core.selftest.reliability.processes --losses 40 --seed S``
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import datetime
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from click.testing import CliRunner
from torch import distributed

from muse_core import fault_injection
from muse_core.cli.run import main as muse_run
from muse_core.parallel import group, watch
from muse_core.training import forward, loop, run  # noqa: F401 - imported before the forks

GIVE_UP = 60.0
"""Seconds within which all processes of a run must have ended once one is lost."""
PATIENCE = 8.0
"""Seconds without a sign of life or a step after which a rank counts as lost here: long enough for a busy machine."""
PORT_BYTES = 8
RECIPE = """
name = "tiny"
seed = 3
data = {{ use = "state-of-the-union", tokenizer = "bytes", cache = "{cache}" }}
[model]
width = 16
depth = 1
block = [{block}]
[train]
steps = 8
batch_size = 4
micro_batch = 1
sequence_length = 24
warmup_steps = 2
precision = "fp32"
log_every = 1
device = "cpu"
[evaluate]
every = 1000
tokens = 240
final_tokens = 240
[checkpoint]
every = 4
"""
DENSE = '{ use = "attention", heads = 2 }, { use = "feed-forward" }'


@attrs.frozen(kw_only=True)
class Start:
    """Some processes of one command."""

    ranks: int = 2
    arguments: tuple[str, ...] = ()
    of_rank_1: tuple[str, ...] | None = None
    """Other arguments of rank 1."""
    fault: Callable[[int], dict[str, Any]] = lambda rank: {}
    """Rank → fault plan."""
    patience: float | None = None
    """Seconds after which a rank counts as silent or stalled."""
    instead: Callable[[], None] | None = None
    """What the processes do in place of the command."""


def process_of(start: Start, rank: int, port: int, said: Path) -> None:
    """One process of a start; never returns."""
    handle = os.open(said, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(handle, stream)
    if start.ranks > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(start.ranks), "MASTER_ADDR": "localhost",
            "LOCAL_WORLD_SIZE": str(start.ranks), "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    if start.patience:
        watch.SILENT = watch.STALL = start.patience
        group.COLD = 0
    arguments = start.of_rank_1 if rank == 1 and start.of_rank_1 is not None else start.arguments
    sys.argv = ["muse-run", *arguments]
    code = 0
    try:
        with fault_injection.installed(start.fault(rank)):
            if start.instead is None:
                muse_run(list(arguments))
            else:
                start.instead()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    for one in (sys.stdout, sys.stderr):
        one.flush()
    os._exit(code)


def run_start(start: Start, folder: Path) -> dict[str, Any]:
    """Exit code and output by rank; a code of None for a process that had to be killed."""
    said = [folder / f"said-{time.monotonic_ns()}-{rank}" for rank in range(start.ranks)]
    here, there = os.pipe()
    children = {}
    for rank in range(start.ranks):
        child = os.fork()
        if child == 0:
            os.close(there)
            process_of(start, rank, _port(here), said[rank])
        children[child] = rank
    # The store has a thread. Begun before the forks it might hold a lock then, which no fork would free.
    store = distributed.TCPStore(
        "localhost", 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=GIVE_UP)
    )
    os.close(here)
    os.write(there, store.port.to_bytes(PORT_BYTES) * start.ranks)
    os.close(there)
    codes: list[int | None] = [None] * start.ranks
    began = time.monotonic()
    while children and time.monotonic() - began < GIVE_UP:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
        elif set(codes) != {None} and all(_stopped(one) for one in children):
            break  # what is stopped ends for nothing but its launcher
        else:
            time.sleep(0.02)
    seconds = time.monotonic() - began
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"codes": codes, "said": [one.read_text(errors="replace") for one in said], "seconds": seconds}


def _port(pipe: int) -> int:
    """Where the store is, once it is; every process of a start takes as many bytes. A launcher that ended before sends
    none, and then this process ends too."""
    found = os.read(pipe, PORT_BYTES)
    os.close(pipe)
    return int.from_bytes(found) if len(found) == PORT_BYTES else os._exit(1)


def _stopped(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def prepared(folder: Path, *recipes: Path) -> None:
    """What every fork would import and encode again is done once, by a look at the recipes."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        for recipe in recipes:
            CliRunner().invoke(muse_run, [str(recipe), "--dry-run"], catch_exceptions=False)


def at_call(number: int, action: Callable[[Any], Any], *, until: int | None = None) -> Callable[[Any], Any]:
    """A fault at the calls ``number`` to ``until`` of a point."""
    calls = iter(range(1 << 30))
    last = number if until is None else until

    def fault(value: Any) -> Any:
        return action(value) if number <= next(calls) <= last else value

    return fault


def signalled(number: int) -> Callable[[Any], Any]:
    """The process sends itself a signal."""

    def action(value: Any) -> Any:
        os.kill(os.getpid(), number)
        return value

    return action


def still(value: Any) -> Any:
    """Nothing more happens."""
    while True:
        time.sleep(1)


def fail(value: Any) -> Any:
    """A fault of the program."""
    raise ZeroDivisionError("a planted fault")


def on(rank: int, **plan: Any) -> Callable[[int], dict[str, Any]]:
    """The fault plan on one rank."""
    return lambda here: plan if here == rank else {}


WAYS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "copies": (DENSE, (), ("batch", "loss", "gradient", "post_step")),
    "divided": (
        DENSE, ("--set=parallel.data=1", '--set=parallel.shard="auto"', '--set=train.optimizer="muon"'), ("gather",)
    ),
    "context": (
        '{ use = "resolvent", heads = 4 }, { use = "fast-weights", heads = 2 }', ("--set=parallel.context=2",),
        ("gather",),
    ),
}
"""How the work is divided → block, arguments, and points at which a rank is lost. At "gather" a plugin's layer or an
optimizer is at work, and the others wait for the rank in the same place."""
LOSSES: dict[str, tuple[Callable[[Any], Any], set[int | None], str]] = {
    "raises": (fail, {1}, "a planted fault"),
    "dies": (signalled(signal.SIGKILL), {6, -9}, "has died|no sign of life"),
    "stands still": (still, {6}, "stands still"),
    "is frozen": (signalled(signal.SIGSTOP), {6, None}, "no sign of life"),
}
"""Kind → what a rank does, the exit codes that its run may end with, and what one of its processes says."""


def lost(folder: Path, way: str, kind: str, rank: int, point: str, call: int) -> list[str]:
    """What is wrong with how a run of two ends when one rank is lost at a call of a point; its recipe is
    ``folder / (way + ".toml")``. The same loss may come twice, so that its run directory goes with it."""
    action, allowed, sentences = LOSSES[kind]
    raised = 5 if point == "gather" else 1  # what raises there is the plugin's
    if kind == "raises":
        allowed = {raised}
    name = f"{way}, {kind} on rank {rank} at call {call} of {point}"
    recipe = str(folder / f"{way}.toml")
    start = Start(
        arguments=(recipe, "--run-dir", str(folder / name), "--no-report", "--set=train.steps=40", *WAYS[way][1]),
        fault=on(rank, **{point: at_call(call, action)}), patience=PATIENCE,
    )
    found = run_start(start, folder)
    shutil.rmtree(folder / name, ignore_errors=True)
    said = "\n".join(found["said"])
    problems = []
    if found["seconds"] >= GIVE_UP:
        problems.append(f"{name}: not all had ended after {GIVE_UP:.0f} s")
    if not set(found["codes"]) <= allowed or found["codes"][1 - rank] not in (raised, 6):
        problems.append(f"{name}: exit codes {found['codes']}, said {said[-500:]!r}")
    if not any(sentence in said for sentence in sentences.split("|")):
        problems.append(f"{name}: nothing was said of it")
    if kind != "raises" and f"rank {rank} (process" not in said:
        problems.append(f"{name}: it is not named")
    return problems


def experiment(folder: Path, *, losses: int, seed: int) -> list[str]:
    """Problems of so many losses, by turns of every kind and way, each of a random rank at a random moment."""
    recipes = [folder / f"{way}.toml" for way in WAYS]
    for recipe, (block, _, _) in zip(recipes, WAYS.values(), strict=True):
        recipe.write_text(RECIPE.format(cache=folder / "cache", block=block))
    prepared(folder, *recipes)
    chance = random.Random(seed)
    kinds, ways, problems = list(LOSSES), list(WAYS), []
    for number in range(losses):
        way = ways[number % len(ways)]
        rank, point, call = chance.randrange(2), chance.choice(WAYS[way][2]), chance.randrange(2, 12)
        call *= 8 if point == "gather" else 1  # several a step
        problems += lost(folder, way, kinds[number % len(kinds)], rank, point, call)
    return problems


def long_form(
    description: str | None, experiment: Callable[..., list[str]], count: str, what: str,
    arguments: Sequence[str] | None,
) -> int:
    """An experiment from the command line, with ``--COUNT`` of it and a ``--seed``; prints what replays it and every
    problem. Exit code 1 where there are any."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(f"--{count}", type=int, default=40)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    chosen = vars(parser.parse_args(arguments))
    folder = Path(tempfile.mkdtemp())  # a TemporaryDirectory would go with the first fork that ends
    try:
        problems = experiment(folder, **chosen)
    finally:
        shutil.rmtree(folder)
    print(f"seed {chosen['seed']}: {chosen[count]} {what}, {len(problems)} problems")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment and prints what replays it."""
    return long_form(__doc__, experiment, "losses", "lost processes", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
