"""Runs of one, two and four gloo processes for the tests beside it, as a program; see
``muse_core.selftest.reliability.processes``. Prints one line of JSON: scenario → for each of its starts exit codes,
what each rank said, seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from muse_baseline.feed_forward import FeedForward
from muse_rollback.monitor import Rollback
from torch import distributed
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.tensor import DTensor

from muse_core.building import build_model, every_backend
from muse_core.contracts import Batch, Tokens
from muse_core.data.batches import columns
from muse_core.parallel.meeting import meeting
from muse_core.parallel.sizes import Sizes
from muse_core.plugins import load_plugins
from muse_core.recipe import read_recipe
from muse_core.selftest.reliability.processes import (
    DENSE,
    RECIPE,
    Start,
    at_call,
    on,
    prepared,
    run_start,
    signalled,
)
from muse_core.storage.checkpoint import commit
from muse_core.training import forward, run
from muse_core.training.forward import SummedForward
from muse_core.training.objectives import NextToken
from muse_core.training.setup import Setup
from muse_core.training.shards import Divider, gathered, own_part

MIXED = (
    '{ use = "resolvent", heads = 4 }, { use = "fast-weights", heads = 2 }, { use = "fast-weights", rule = "hebbian", '
    'name = "hebbian", heads = 2, mixing = "resolvent", potential = ["non-hermitian"] }, { use = "feed-forward" }'
)
EXPERTS = '{ use = "attention", heads = 2 }, { use = "experts", experts = 4, router = { use = "mlp", top_k = 1 } }'


def ragged(batch: Batch) -> Batch:
    """Rows of different lengths of which a part of the labels counts, the same for every division into processes."""
    count, length = batch.inputs.shape
    ends = torch.tensor([length - 5 * (row % 4) for row in range(count)])
    valid = torch.arange(length) < ends[:, None]
    counts = valid & ((torch.arange(length) + batch.inputs) % 3 > 0)
    return batch._replace(loss_mask=batch.loss_mask & counts, tokens=batch.tokens._replace(valid=valid))


def no_number(result: Any) -> Any:
    return result._replace(total=result.total * torch.nan)


def scenarios(folder: Path) -> Iterator[tuple[str, list[Start]]]:
    """Name and starts of each."""
    cache = folder / "cache"
    dense, experts = folder / "dense.toml", folder / "experts.toml"
    dense.write_text(RECIPE.format(cache=cache, block=DENSE))
    experts.write_text(RECIPE.format(cache=cache, block=EXPERTS))
    other = folder / "other.toml"
    other.write_text(RECIPE.format(cache=cache, block=DENSE).replace("seed = 3", "seed = 4"))

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
              fault=lambda rank: {"batch": ragged, "post_step": at_call(2, signalled(signal.SIGTERM))}),
        Start(ranks=1, arguments=resume("divided"),
              fault=lambda rank: {"batch": ragged, "post_step": at_call(1, signalled(signal.SIGTERM))}),
        Start(ranks=4, arguments=resume("divided"), fault=everywhere),
    ]
    copies = ('--set=parallel.data="auto"', "--set=parallel.shard=2", *shards[2:])
    yield "hybrid", [
        Start(ranks=4, arguments=fresh(experts, "hybrid", *copies),
              fault=lambda rank: {"batch": ragged, "post_step": at_call(2, signalled(signal.SIGTERM))}),
        Start(arguments=resume("hybrid"), fault=everywhere),
    ]
    mixed = folder / "mixed.toml"
    mixed.write_text(RECIPE.format(cache=cache, block=MIXED))
    for ranks in (1, 2):
        # Blocks are computed once more in the backward pass, over divided tokens as in the forward pass.
        more = ("--set=parallel.context=2", "--set=train.activation_checkpointing=true") if ranks > 1 else ()
        yield f"mixed-{ranks}", [
            Start(ranks=ranks, arguments=fresh(mixed, f"mixed-{ranks}", *more), fault=everywhere)
        ]
    yield "one", [Start(ranks=1, arguments=fresh(dense, "one"))]
    deep = "--set=model.depth=3"
    yield "compiled", [
        Start(ranks=1, arguments=fresh(dense, "deep", deep)),
        Start(arguments=fresh(dense, "compiled", deep, *shards[:2], '--set=train.compile="blocks"'), fault=traced),
    ]
    drops = ("--set=train.compile=true", "--set=model.dropout=0.1", "--set=train.steps=3")
    yield "compiled copies", [
        Start(arguments=fresh(dense, "checked", *drops), fault=traced),
        Start(arguments=fresh(dense, "unchecked", *drops, "--set=train.check_compiled=false"), fault=traced),
        Start(arguments=fresh(dense, "lost", *drops), fault=lost_on_rank_1),
    ]
    halt = '--set=evaluate.halt_above="bigram"'
    yield "nan", [Start(arguments=fresh(dense, "nan", halt), fault=on(1, loss=at_call(8, no_number, until=13)))]
    watched = fresh(dense, "canary", "--set=train.steps=40", "--set=train.learning_rate=1e-6",
                    '--set=monitors=[{ use = "rollback", warmup_steps = 2, window = 16, every = 2, sequences = 4, '
                    'references = 3, margin = 2 }]')
    yield "canary", [Start(arguments=watched, fault=damaged)]
    yield "signal", [
        Start(arguments=fresh(dense, "signal"), fault=on(1, post_step=at_call(2, signalled(signal.SIGTERM)))),
        Start(ranks=1, arguments=resume("signal")),
    ]
    yield "full disk", [Start(arguments=fresh(dense, "disk"), fault=full_disk_of_rank_1)]
    yield "other recipe", [Start(arguments=fresh(dense, "bad"), of_rank_1=fresh(other, "bad"))]
    yield "leaks", [
        Start(arguments=fresh(dense, "bad", *shards[:2]), fault=leaking(exact=True)),
        Start(arguments=fresh(dense, "bad", *shards[:2]), fault=leaking(exact=False)),
    ]
    yield "blocks", [Start(instead=divided_as_built(dense))]
    yield "exact", [Start(ranks=3, instead=divided_gradients(mixed))]
    small = "--set=train.learning_rate=1e-6"  # updates of the usual size enlarge rounding, on some processors to 0.6 %
    yield "summed", [
        Start(ranks=1, arguments=fresh(mixed, "alone", small), fault=everywhere),
        Start(arguments=fresh(mixed, "summed", small), fault=summing(everywhere)),
    ]
    yield "odd", [Start(arguments=fresh(dense, name), fault=summing(lambda rank: {}, without=step))
                  for name, step in (("odd-0", 0), ("odd-3", 3))]
    yield "attention", [Start(ranks=2, arguments=fresh(dense, "bad", "--set=parallel.context=2"))]
    yield "three", [Start(ranks=3, arguments=fresh(dense, "bad"))]


def summing(plan: Callable[[int], dict[str, Any]], *, without: int | None = None) -> Callable[[int], dict[str, Any]]:
    """Gradients are summed as in recorded steps, which a CPU has not; rank 1 loses one of them at a call."""

    def planned(rank: int) -> dict[str, Any]:
        def make(model: Any, objective: Any, recipe: Any, ranks: Any) -> SummedForward:
            return SummedForward(model, objective, ranks, dict(model.named_parameters()))

        run.make_forward = make
        add, calls = SummedForward.sum_gradients, iter(range(1 << 30))

        def losing(self: SummedForward) -> None:
            if next(calls) == without:
                next(iter(self.parameters.values())).grad = None
            add(self)

        if rank == 1:
            SummedForward.sum_gradients = losing  # type: ignore[method-assign]
        return plan(rank)

    return planned


def gradients(recipe: Any, registry: Any, ranks: Any) -> dict[str, torch.Tensor]:
    """In float64, of ragged rows in two documents each; with ``ranks`` summed over its processes, which each have a
    part of the tokens."""
    sequence = None if ranks is None else ranks.sequence
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
    if ranks is not None:
        SummedForward(model, NextToken(), ranks, dict(model.named_parameters())).sum_gradients()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def divided_gradients(path: Path) -> Callable[[], None]:
    """Prints the largest difference from one process's, relative to the largest entry of a parameter's gradient."""

    def compare() -> None:
        registry = load_plugins()
        recipe = read_recipe(path, (), registry).recipe
        forward.BUCKET = 4000  # so that there are several, of real and of complex numbers
        with meeting() as ranks:
            ranks.join(torch.device("cpu"), Sizes(1, 1, ranks.size))
            found = gradients(recipe, registry, ranks)
            for most in (9, 90_000, 9):  # numbers of a step that find room, or need more on one rank
                told = [(rank, "x" * (most * (rank == 1))) for rank in range(ranks.size)]
                assert ranks.exchange(told[ranks.rank]) == told
            if ranks.rank == 0:
                whole = gradients(recipe, registry, None)
                print(max(float((found[name] - due).abs().max() / due.abs().max()) for name, due in whole.items()))

    return compare


def compiled_once() -> None:
    """What torch.compile imports at its first use takes seconds, of every fork that does not find it here."""
    torch.compile(lambda x: 2 * x, backend="aot_eager")(torch.ones(2, requires_grad=True)).sum().backward()
    torch.compiler.reset()


def traced(rank: int) -> dict[str, Any]:
    """torch.compile traces forward and backward; making C++ of them would take a minute. Each rank says at its end how
    many graphs there were."""
    counter = CompileCounterWithBackend("aot_eager")
    compile_with = torch.compile
    torch.compile = lambda function, **_: compile_with(function, backend=counter)  # in a process of its own
    atexit.register(lambda: print(f"graphs: {counter.frame_count}", flush=True))
    return {}


def lost_on_rank_1(rank: int) -> dict[str, Any]:
    """As ``traced``; one rank's compiler loses the gradients behind feed-forward layers."""
    compute = FeedForward.forward

    def lose(self: Any, x: torch.Tensor, *rest: Any) -> Any:
        return compute(self, x.detach() if torch.compiler.is_compiling() else x, *rest)

    if rank == 1:
        FeedForward.forward = lose
    return traced(rank)


def leaking(*, exact: bool) -> Callable[[int], dict[str, Any]]:
    """A layer reads later tokens; without ``exact`` the gate's check in float64, which rank 0 makes alone, is left to
    the checks that all ranks make."""

    def plan(rank: int) -> dict[str, Any]:
        compute = FeedForward.forward

        def leak(self: Any, x: torch.Tensor, *rest: Any) -> Any:
            output = compute(self, x, *rest)
            return output._replace(update=output.update + 0.1 * x.mean(1, keepdim=True))

        FeedForward.forward = leak
        if not exact:
            Setup._exact_leak = lambda self, warn: None
        return {}

    return plan


def held() -> int:
    """Bytes of all parameters of this process."""
    gc.collect()
    parameters = [own_part(one) for one in gc.get_objects() if type(one) in (torch.nn.Parameter, DTensor)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in parameters}
    return sum(storages.values())


def divided_as_built(path: Path) -> Callable[[], None]:
    """Prints whether a divided model has the values of a whole one, and the most bytes of parameters that this process
    held while it was built, relative to those of the whole model."""

    def build() -> None:
        gc.freeze()  # what was made before is nothing of the model, and to look through it takes seconds
        registry = load_plugins()
        changes = ['model.depth=8', 'parallel.data=1', 'parallel.shard="auto"',
                   'initializers=[{ use = "scaled", match = "blocks.*.feed-forward.*", factor = 3.0 }]']
        recipe = read_recipe(path, changes, registry).recipe
        distributed.init_process_group("gloo")
        divider = Divider(recipe, SimpleNamespace(size=2, agree=lambda *told: None), torch.device("cpu"))
        read, most, before = divider._read, 0, held()

        def counted(*given: Any) -> None:
            nonlocal most
            most = max(most, held() - before)
            read(*given)

        divider._read = counted  # type: ignore[method-assign]
        model, _ = build_model(recipe, registry, vocabulary_size=257, divider=divider)
        found = gathered(model, True)
        whole = build_model(recipe, registry, vocabulary_size=257)[0].state_dict()
        equal = found.keys() == whole.keys() and all(torch.equal(found[name], due) for name, due in whole.items())
        print(json.dumps([equal, most / sum(one.nbytes for one in whole.values())]))

    return build


def damaged(rank: int) -> dict[str, Any]:
    """Weights are damaged once, on both ranks, and rank 1 alone finds damage by the canary before."""
    find, calls = Rollback.canary, iter(range(1 << 30))

    def canary(self: Any, model: Any) -> float:
        return find(self, model) + (5.0 if next(calls) > 6 else 0.0)

    if rank == 1:
        Rollback.canary = canary

    def damage(model: Any) -> Any:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0)
        return model

    return {"post_step": at_call(29, damage)}


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
    place = Path(sys.argv[1])
    wanted = sys.argv[2:]
    planned = list(scenarios(place))
    prepared(place, place / "experts.toml", place / "mixed.toml")
    compiled_once()
    gc.collect()
    gc.freeze()  # otherwise the collector of every fork copies what they share
    found = {
        name: [run_start(start, place) for start in starts]
        for name, starts in planned if not wanted or name in wanted
    }
    print(json.dumps(found))
