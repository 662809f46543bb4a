"""How the loop computes a loss: by one process, or by several that each have a copy of the model."""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from muse_core.component import walk
from muse_core.contracts import Batch, Objective, Result, State
from muse_core.data.batches import columns, rows, target_room, targets_of_pieces, targets_per_token
from muse_core.errors import MuseError, RecipeError
from muse_core.model.precision import choose_precision
from muse_core.parallel.one import ONE, Ranks
from muse_core.parallel.sizes import sizes_of
from muse_core.plugins.discovery import CORE
from muse_core.recipe.schema import Recipe
from muse_core.training.compilation import compile_blocks, compiled, forget_others
from muse_core.training.optimizers import norms
from muse_core.training.shards import own_part

BUCKET = 2**26
"""Bytes of gradients that are summed over processes at once; so much memory more is used meanwhile."""


class Forward:
    """The objective of a model in one process."""

    parts = 1
    """By which a backward pass divides gradients once more than the loop does: the mean over so many processes."""

    def __init__(self, model: Any, objective: Objective, ranks: Ranks = ONE):
        self.model = model
        self.objective = objective
        self.ranks = ranks

    def __call__(self, batch: Batch, state: State) -> Result:
        return self.objective(self.model, batch, state)

    def own_rows(self, batch: Batch) -> Batch:
        """The rows of a batch that this process reads."""
        return batch

    def begin(self, seed: int, step: int) -> None:
        """A step begins: ranks above 0 get the random state of this step."""

    def gradients_of(self, index: int, count: int) -> contextlib.AbstractContextManager[Any]:
        """A context for forward and backward of micro-batch ``index`` of ``count``."""
        return contextlib.nullcontext()

    def apart(self) -> contextlib.AbstractContextManager[Any]:
        """A context for a forward and backward pass that is no step's: where gradients are those of this process's rows
        until they are summed, they stay so."""
        return self.gradients_of(0, 2)

    def target_room(self, batch: Batch, own: Sequence[Batch], micro_batch: int | None) -> int:
        """``batches.target_room`` of this process's micro-batches of a whole batch."""
        return target_room(own)

    def sum_gradients(self) -> None:
        """After the last micro-batch: makes the gradients those of all processes, where the backward pass does not."""

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """``optimizers.norms`` of whole gradients."""
        return norms(gradients)

    def telemetry(self) -> tuple[float | None, int]:
        """Seconds from the step's start to the end of its last forward pass, where Python saw it end, and most bytes
        that tensors took on this rank's GPU so far."""
        return None, 0


class _Losses(nn.Module):
    """The objective as a module: everything that uses a parameter happens within its ``forward``, which is where
    DistributedDataParallel looks for those that are used."""

    def __init__(self, model: Any, objective: Objective, *, search: bool):
        super().__init__()
        self.model = model
        self.objective = objective
        if search:  # torch warns in every run when it has looked for unused parameters and found none: here is one.
            self.unused = nn.Parameter(next(model.parameters()).new_zeros(1))

    def forward(self, batch: Batch, state: State) -> Result:
        result: Result = self.objective(self.model, batch, state)
        # Of what is returned only the loss has gradients: the rest would count as used.
        return Result(
            result.total, detached(result.losses), detached(result.metrics), detached(result.state)
        )


class _SeveralForward(Forward):
    """By several processes that each have rows or tokens of their own, and of whose gradients torch makes the mean (or
    the sum, where ``parts`` is 1)."""

    def __init__(self, model: Any, objective: Objective, ranks: Ranks):
        super().__init__(model, objective, ranks)
        self.parts = ranks.size
        self.clock = Clock(next(model.parameters()).device)

    def begin(self, seed: int, step: int) -> None:
        self.ranks.seed_step(seed, step)
        self.clock.start()

    def telemetry(self) -> tuple[float | None, int]:
        device = self.clock.device
        return self.clock.read(), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

    def own_rows(self, batch: Batch) -> Batch:
        batch = batch._replace(targets_per_token=targets_per_token(batch))  # of the whole batch, as its targets are
        sequence = self.ranks.sequence
        count, (places, sharing) = len(batch.inputs), self._shares()
        if count % places:
            raise RecipeError(
                f"stages: this stage reads batches of its own, of {count} rows, which cannot be divided among {places} "
                "processes - run it as one process"
            )
        size, place = count // places, self.ranks.rank // sharing
        own = rows(batch, place * size, (place + 1) * size)
        return own if sequence is None else columns(own, sequence.rank, sequence.size)

    def _shares(self) -> tuple[int, int]:
        """Among how many processes the rows of a batch are divided, and the tokens of a row."""
        sharing = 1 if self.ranks.sequence is None else self.ranks.sequence.size
        return self.ranks.size // sharing, sharing


class ReplicatedForward(_SeveralForward):
    """Of a copy of the model in every process: torch's DistributedDataParallel.

    ``varies``: tokens decide which parameters are used, as with routed experts. Then every step looks for those that
    are not, and waits for the device where there are some. Otherwise the first step alone looks, and the others do not
    if all were used in it.
    """

    def __init__(self, model: Any, objective: Objective, ranks: Ranks, *, varies: bool):
        super().__init__(model, objective, ranks)
        self.parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.varies, self.search, self.all_used = varies, True, False
        self.replicas = self._replicas()

    def _replicas(self) -> Any:
        # Initial values are equal by name and compared; the broadcast at the start goes wrong for strided views.
        with warnings.catch_warnings():
            # torch 2.13 has another name for broadcast_buffers, which 2.11 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                _Losses(self.model, self.objective, search=self.search), broadcast_buffers=False, init_sync=False,
                gradient_as_bucket_view=True, find_unused_parameters=self.search,
            )

    def begin(self, seed: int, step: int) -> None:
        if self.search and self.all_used:
            self.search = False
            self.replicas = None  # before the other one: it takes its hooks off the parameters,
            gc.collect()  # and ends here, cycles of references among torch's objects included
            self.replicas = self._replicas()
        super().begin(seed, step)

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """Raises MuseError where a parameter has no gradient that had one in the first step: its rank's part of the
        sum over ranks was not made."""
        without = [name for name, parameter in self.parameters.items() if parameter.grad is None]
        if without and not self.search:
            raise MuseError(
                f"{without[0]} has no gradient in this step and had one before: several processes need the same "
                "parameters in every step - run it as one process, or divide weights (parallel.shard)"
            )
        self.all_used = not without and not self.varies
        return super().norms(gradients)

    def __call__(self, batch: Batch, state: State) -> Result:
        self.ranks.mark("forward and backward")
        result: Result = self.replicas(batch, state)
        self.clock.lap()
        return result

    @contextlib.contextmanager
    def gradients_of(self, index: int, count: int) -> Iterator[None]:
        sequence = self.ranks.sequence
        with contextlib.ExitStack() as contexts:
            if index < count - 1:
                contexts.enter_context(self.replicas.no_sync())
            if sequence is not None:  # in the backward pass too, which may compute blocks once more
                contexts.enter_context(sequence.division())
            yield


class SummedForward(_SeveralForward):
    """Of a copy of the model in every process, for steps that are recorded: gradients are summed by all-reduces behind
    the last backward pass, which a recording holds as it holds the pass.

    DistributedDataParallel reads its timers in the first ten passes and every hundredth, and renews its buckets in the
    second; these sums depend on nothing but the gradients, and are the same recorded or not.
    """

    def __init__(self, model: Any, objective: Objective, ranks: Ranks, parameters: Mapping[str, nn.Parameter]):
        """``parameters``: by name, those that are trained; ``model`` may be a compiled one."""
        super().__init__(model, objective, ranks)
        self.parts = 1
        self.parameters = parameters
        self.names: tuple[str, ...] | None = None
        """Parameters that have gradients, as the first step found."""

    def __call__(self, batch: Batch, state: State) -> Result:
        self.ranks.mark("forward and backward")
        result = super().__call__(batch, state)
        self.clock.lap()
        return result

    def gradients_of(self, index: int, count: int) -> contextlib.AbstractContextManager[Any]:
        sequence = self.ranks.sequence
        return contextlib.nullcontext() if sequence is None else sequence.division()

    def target_room(self, batch: Batch, own: Sequence[Batch], micro_batch: int | None) -> int:
        """Of the micro-batches of all processes: their steps are of one form, without a word between them."""
        return target_room(own, max(targets_of_pieces(batch, *self._shares(), micro_batch)))

    def sum_gradients(self) -> None:
        """Raises RecipeError where ranks have gradients of different parameters in the first step, and MuseError where
        one has those of others later: their sums would be of different things."""
        found = {name: one for name, one in self.parameters.items() if one.grad is not None}
        names = tuple(found)
        if self.names is None:
            ranks: Any = self.ranks
            ranks.agree("parameters with gradients", list(names), "run it as one process")
            self.names = names
        elif names != self.names:
            odd = sorted({*names} ^ {*self.names})[0]
            raise MuseError(
                f"{odd} has a gradient in some steps alone: several processes need the same parameters in every step - "
                "run it as one process, or divide weights (parallel.shard)"
            )
        for bucket in buckets(list(found.values())):
            total = torch.cat([one.grad.reshape(-1) for one in bucket])
            distributed.all_reduce(torch.view_as_real(total) if total.is_complex() else total)
            for parameter, part in zip(bucket, total.split([one.numel() for one in bucket]), strict=True):
                # In its own strides: torch's fused updates pair a parameter and its gradient as they lie in memory.
                parameter.grad.copy_(part.view(parameter.shape))


def buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters whose gradients are of one type and fit into ``BUCKET`` bytes, or one that does not."""
    kinds: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(parameter.grad.dtype, []).append(parameter)  # type: ignore[union-attr]
    for same in kinds.values():
        bucket: list[nn.Parameter] = []
        filled = 0
        for parameter in same:
            if bucket and filled + parameter.nbytes > BUCKET:
                yield bucket
                bucket, filled = [], 0
            bucket.append(parameter)
            filled += parameter.nbytes
        yield bucket


class DividedForward(_SeveralForward):
    """Of a model whose weights are divided among processes: torch's FSDP2, see ``shards.divide``."""

    def __call__(self, batch: Batch, state: State) -> Result:
        self.ranks.mark("forward and backward")
        result = super().__call__(batch, state)
        self.clock.lap()
        return result

    def apart(self) -> contextlib.AbstractContextManager[Any]:
        return self.gradients_of(0, 1)  # of divided weights a process has no gradient before it is summed

    @contextlib.contextmanager
    def gradients_of(self, index: int, count: int) -> Iterator[None]:
        self.model.set_requires_gradient_sync(index == count - 1)
        self.model.set_is_last_backward(index == count - 1)
        yield

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        squares = norms([own_part(one) for one in gradients]).square()
        if gradients:
            first: Any = gradients[0]
            distributed.all_reduce(squares, group=first.device_mesh.get_group("shard"))
        return squares.sqrt()


def make_forward(model: nn.Module, objective: Objective, recipe: Recipe, ranks: Ranks) -> Forward:
    """For the processes that a run has. Raises RecipeError for an objective that several processes cannot share."""
    train = recipe.train
    half = choose_precision(next(model.parameters()).device, train.precision).autocast
    if train.compile:
        forget_others(model, train.batch_size, train.micro_batch, train.sequence_length)
    if ranks.size == 1:
        return Forward(compiled(model, train.compile, half=half), objective)
    if hasattr(objective, "tensors") or hasattr(objective, "finished"):
        # Every rank would keep and judge what its own rows give, and a checkpoint holds what rank 0 has.
        raise RecipeError(
            f"stages: the objective {type(objective).__name__} keeps tensors or ends by what it has seen, which ranks "
            "do not have in common - run this stage as one process"
        )
    sizes = sizes_of(recipe.parallel, ranks.size)
    if sizes.shard == 1 and train.cuda_graph:
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        return SummedForward(compiled(model, train.compile, half=half), objective, ranks, trained)
    if sizes.shard == 1:
        own = all(use.distribution == CORE for use in recipe.stages)  # an objective may use what it likes
        varies = not own or any(use.kind == "router" for use in walk(recipe.model.options))
        varies = varies or getattr(recipe.model.options, "exit", None) is not None
        return ReplicatedForward(compiled(model, train.compile, half=half), objective, ranks, varies=varies)
    if train.compile:
        compile_blocks(model, half=half)  # what FSDP2 gathers is whole within a block alone
    return DividedForward(model, objective, ranks)


def detached(tree: Any) -> Any:
    """A pytree with its tensors detached."""
    from torch.utils import _pytree as pytree

    return pytree.tree_map_only(Tensor, torch.Tensor.detach, tree)


class Clock:
    """Seconds from ``start`` to the last ``lap``, on the device where it is a GPU; ``read`` once the device has come
    past both. A lap within a recording counts for nothing: what is replayed tells no time."""

    def __init__(self, device: torch.device):
        self.device = device
        self._cuda = device.type == "cuda"
        self._first = self._now()
        self._last: Any = None

    def start(self) -> None:
        self._first, self._last = self._now(), None

    def lap(self) -> None:
        if not (self._cuda and torch.cuda.is_current_stream_capturing()):
            self._last = self._now()

    def read(self) -> float | None:
        """None without a lap since the start."""
        if self._last is None:
            return None
        if not self._cuda:
            return float(self._last - self._first)
        seconds: float = self._first.elapsed_time(self._last) / 1000
        return seconds

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def of_ranks(told: Sequence[tuple[float | None, int]]) -> dict[str, float]:
    """Numbers of the records from every rank's ``telemetry``."""
    seconds = [one for one, _ in told if one is not None]
    memory = max(one for _, one in told)
    found: dict[str, float] = {}
    if len(seconds) == len(told):
        found = {
            "ranks/slowest": float(seconds.index(max(seconds))),
            "ranks/forward_seconds_max": max(seconds),
            "ranks/forward_seconds_min": min(seconds),
        }
    return found | ({"ranks/memory_bytes_max": float(memory)} if memory else {})
