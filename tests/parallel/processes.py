"""Runs of one, two or four gloo processes for the tests beside it, as a program: torch is imported once and every
process is a fork. Prints one line of JSON: scenario → exit codes, what each rank said, seconds.

A scenario is a list of starts in order; a start is ranks of ``muse-run`` with arguments, on one or all of which a fault
is installed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from click.testing import CliRunner
from torch import distributed

from muse_core import fault_injection
from muse_core.building import build_model, every_backend
from muse_core.cli.run import main
from muse_core.contracts import Batch, Tokens
from muse_core.data.batches import columns
from muse_core.parallel import group, watch
from muse_core.parallel.sequence import Sequence
from muse_core.plugins import load_plugins
from muse_core.recipe import read_recipe
from muse_core.storage.checkpoint import commit
from muse_core.training import forward, loop, run  # noqa: F401 - imported before the forks
from muse_core.training.objectives import NextToken

GIVE_UP = 60.0
"""Seconds after which a start has failed: none of its processes may live longer than another by so much."""
BASE = """
name = "tiny"
seed = 3
data = {{ use = "state-of-the-union", tokenizer = "bytes", cache = "{cache}" }}
[model]
width = 16
depth = 1
block = [{{ use = "attention", heads = 2 }}, {block}]
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
DENSE = '{ use = "feed-forward" }'
MIXED = (
    '{ use = "resolvent", heads = 4 }, { use = "fast-weights", heads = 2 }, { use = "fast-weights", rule = "hebbian", '
    'name = "hebbian", heads = 2 }, { use = "feed-forward" }'
)
EXPERTS = '{ use = "experts", experts = 4, router = { use = "mlp", top_k = 1 } }'


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


def main_of_process(start: Start, rank: int, port: int, said: Path) -> None:
    """Never returns."""
    handle = os.open(said, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(handle, stream)
    if start.ranks > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(start.ranks), "MASTER_ADDR": "localhost",
            "LOCAL_WORLD_SIZE": str(start.ranks), "MASTER_PORT": str(port),
        }
    if start.patience:
        watch.SILENT = watch.STALL = start.patience
        group.COLD = 0
    arguments = start.of_rank_1 if rank == 1 and start.of_rank_1 is not None else start.arguments
    sys.argv = ["muse-run", *arguments]
    code = 0
    try:
        with fault_injection.installed(start.fault(rank)):
            main(list(arguments)) if start.instead is None else start.instead()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def run_start(start: Start, folder: Path) -> dict[str, Any]:
    """Exit code and output by rank; a code of None for a process that had to be killed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    said = [folder / f"said-{time.monotonic_ns()}-{rank}" for rank in range(start.ranks)]
    children = {}
    for rank in range(start.ranks):
        child = os.fork()
        if child == 0:
            main_of_process(start, rank, port, said[rank])
        children[child] = rank
    codes: list[int | None] = [None] * start.ranks
    began = time.monotonic()
    while children and time.monotonic() - began < GIVE_UP:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
        elif set(codes) != {None} and -signal.SIGKILL not in codes and all(_stopped(one) for one in children):
            break  # what is stopped ends for nothing but its launcher
        else:
            time.sleep(0.02)
    seconds = time.monotonic() - began
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"codes": codes, "said": [one.read_text(errors="replace") for one in said], "seconds": seconds}


def _stopped(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def ragged(batch: Batch) -> Batch:
    """Rows of different lengths of which a part of the labels counts, the same for every division into processes."""
    count, length = batch.inputs.shape
    ends = torch.tensor([length - 5 * (row % 4) for row in range(count)])
    valid = torch.arange(length) < ends[:, None]
    counts = valid & ((torch.arange(length) + batch.inputs) % 3 > 0)
    return batch._replace(loss_mask=batch.loss_mask & counts, tokens=batch.tokens._replace(valid=valid))


def at_call(number: int, action: Callable[[Any], Any], *, until: int | None = None) -> Callable[[Any], Any]:
    """A fault at the calls ``number`` to ``until`` of a point."""
    calls = iter(range(1 << 30))
    last = number if until is None else until

    def fault(value: Any) -> Any:
        return action(value) if number <= next(calls) <= last else value

    return fault


def kill_self(number: int) -> Callable[[Any], Any]:
    def action(value: Any) -> Any:
        os.kill(os.getpid(), number)
        return value

    return action


def wait_for_ever(value: Any) -> Any:
    while True:
        time.sleep(1)


def fail(value: Any) -> Any:
    raise ZeroDivisionError("a fault of rank 1")


def no_number(result: Any) -> Any:
    return result._replace(total=result.total * torch.nan)


def on(rank: int, **plan: Any) -> Callable[[int], dict[str, Any]]:
    return lambda here: plan if here == rank else {}


def scenarios(folder: Path) -> Iterator[tuple[str, list[Start]]]:
    """Name and starts of each."""
    cache = folder / "cache"
    dense, experts = folder / "dense.toml", folder / "experts.toml"
    dense.write_text(BASE.format(cache=cache, block=DENSE))
    experts.write_text(BASE.format(cache=cache, block=EXPERTS))
    other = folder / "other.toml"
    other.write_text(BASE.format(cache=cache, block=DENSE).replace("seed = 3", "seed = 4"))

    def fresh(recipe: Path, name: str, *more: str) -> tuple[str, ...]:
        return (str(recipe), "--run-dir", str(folder / name), "--no-report", *more)

    def resume(name: str) -> tuple[str, ...]:
        return ("--resume", str(folder / name), "--no-report")

    everywhere = lambda rank: {"batch": ragged}  # noqa: E731
    shards = ('--set=parallel.data=1', '--set=parallel.shard="auto"', '--set=checkpoint.background=true',
              '--set=train.optimizer="muon"')
    for name, ranks in (("whole", 1), ("copies", 2)):
        yield name, [Start(ranks=ranks, arguments=fresh(experts, name, *shards[3:]), fault=everywhere)]
    yield "divided", [
        Start(arguments=fresh(experts, "divided", *shards),
              fault=lambda rank: {"batch": ragged, "post_step": at_call(2, kill_self(signal.SIGTERM))}),
        Start(ranks=1, arguments=resume("divided"),
              fault=lambda rank: {"batch": ragged, "post_step": at_call(1, kill_self(signal.SIGTERM))}),
        Start(ranks=4, arguments=resume("divided"), fault=everywhere),
    ]
    mixed = folder / "mixed.toml"
    mixed.write_text(BASE.format(cache=cache, block=MIXED).replace('{ use = "attention", heads = 2 }, ', ""))
    for ranks in (1, 2):
        more = ("--set=parallel.context=2",) if ranks > 1 else ()
        yield f"mixed-{ranks}", [
            Start(ranks=ranks, arguments=fresh(mixed, f"mixed-{ranks}", *more), fault=everywhere)
        ]
    yield "one", [Start(ranks=1, arguments=fresh(dense, "one"))]
    halt = '--set=evaluate.halt_above="bigram"'
    yield "nan", [Start(arguments=fresh(dense, "nan", halt), fault=on(1, loss=at_call(8, no_number, until=13)))]
    steps = "--set=train.steps=40"
    yield "signal", [
        Start(arguments=fresh(dense, "signal"), fault=on(1, post_step=at_call(2, kill_self(signal.SIGTERM)))),
        Start(ranks=1, arguments=resume("signal")),
    ]
    yield "raises", [Start(arguments=fresh(dense, "raises"), fault=on(1, batch=at_call(3, fail)))]
    yield "dies", [Start(arguments=fresh(dense, "dies"), fault=on(1, batch=at_call(3, kill_self(signal.SIGKILL))))]
    yield "stalls", [
        Start(arguments=fresh(dense, "stalls", steps), fault=on(1, batch=at_call(3, wait_for_ever)), patience=3)
    ]
    yield "freezes", [
        Start(arguments=fresh(dense, "freezes", steps), patience=3,
              fault=on(1, batch=at_call(3, kill_self(signal.SIGSTOP))))
    ]
    yield "full disk", [Start(arguments=fresh(dense, "disk"), fault=full_disk_of_rank_1)]
    yield "other recipe", [Start(arguments=fresh(dense, "bad"), of_rank_1=fresh(other, "bad"))]
    yield "exact", [Start(ranks=3, instead=divided_gradients(mixed))]
    yield "attention", [Start(ranks=2, arguments=fresh(dense, "bad", "--set=parallel.context=2"))]
    yield "three", [Start(ranks=3, arguments=fresh(dense, "bad"))]


def gradients(recipe: Any, registry: Any, sequence: Any) -> dict[str, torch.Tensor]:
    """In float64, of ragged rows in two documents each; with ``sequence`` summed over its processes, which each have a
    part of the tokens."""
    backends = every_backend(recipe, registry)
    model: Any = build_model(
        recipe, registry, vocabulary_size=257, dtype="float64", backends=backends, sequence=sequence
    )[0].double()
    ids = torch.randint(0, 257, (2, 25), generator=torch.Generator().manual_seed(0))
    places = torch.arange(24).expand(2, 24)
    valid = places < torch.tensor([[24], [17]])
    batch = Batch(ids[:, :-1], ids[:, 1:], valid, Tokens(places, 0, places == torch.tensor([[7], [13]]), valid))
    if sequence is not None:
        batch = columns(batch, sequence.rank, sequence.size)
    with contextlib.nullcontext() if sequence is None else sequence.division():
        NextToken()(model, batch, None).total.backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    if sequence is not None:
        for gradient in found.values():
            distributed.all_reduce(gradient)
    return found


def divided_gradients(path: Path) -> Callable[[], None]:
    """Prints the largest difference from one process's, relative to the largest entry of a parameter's gradient."""

    def compare() -> None:
        registry = load_plugins()
        recipe = read_recipe(path, (), registry).recipe
        distributed.init_process_group("gloo")
        found = gradients(recipe, registry, Sequence(distributed.group.WORLD))
        if distributed.get_rank() == 0:
            whole = gradients(recipe, registry, None)
            print(max(float((found[name] - due).abs().max() / due.abs().max()) for name, due in whole.items()))
        distributed.barrier()

    return compare


def full_disk_of_rank_1(rank: int) -> dict[str, Any]:
    """The disk of rank 1 takes the three files of the first checkpoint and no more."""
    real, calls = commit.write_tensors, iter(range(1 << 30))

    def write(*arguments: Any) -> Any:
        if next(calls) >= 3:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    if rank == 1:
        commit.write_tensors = write
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    wanted = sys.argv[2:]
    planned = list(scenarios(place))
    with contextlib.redirect_stdout(sys.stderr):  # what the forks would import and encode one by one
        CliRunner().invoke(main, [str(place / "experts.toml"), "--dry-run"], catch_exceptions=False)
        CliRunner().invoke(main, [str(place / "mixed.toml"), "--dry-run"], catch_exceptions=False)
    found = {
        name: [run_start(start, place) for start in starts]
        for name, starts in planned if not wanted or name in wanted
    }
    print(json.dumps(found))
