"""How the loop computes a loss: by one process, or by several that each have a copy of the model."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.contracts import Batch, Objective, Result, State
from muse_core.data.batches import rows, targets_per_token
from muse_core.parallel.one import ONE, Ranks
from muse_core.parallel.sizes import sizes_of
from muse_core.recipe.schema import Recipe


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

    def gradients_of(self, index: int, count: int) -> contextlib.AbstractContextManager[Any]:
        """A context for forward and backward of micro-batch ``index`` of ``count``."""
        return contextlib.nullcontext()


class _Losses(nn.Module):
    """The objective as a module: everything that uses a parameter happens within its ``forward``, which is where
    DistributedDataParallel looks for those that are used."""

    def __init__(self, model: Any, objective: Objective):
        super().__init__()
        self.model = model
        self.objective = objective
        # torch warns in every run when it has looked for unused parameters and found none: here is one.
        self.unused = nn.Parameter(next(model.parameters()).new_zeros(1))

    def forward(self, batch: Batch, state: State) -> Result:
        result = self.objective(self.model, batch, state)
        # Of what is returned only the loss has gradients: the rest would count as used.
        return Result(
            result.total, detached(result.losses), detached(result.metrics), detached(result.state)
        )


class ReplicatedForward(Forward):
    """Of a copy of the model in every process, whose gradients torch's DistributedDataParallel makes their mean."""

    def __init__(self, model: Any, objective: Objective, ranks: Ranks, parts: int):
        """``parts``: processes with rows of their own."""
        super().__init__(model, objective, ranks)
        self.parts = parts
        # Initial values are equal by name and compared; the broadcast at the start goes wrong for strided views.
        with warnings.catch_warnings():
            # torch 2.13 has another name for broadcast_buffers, which 2.11 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            self.replicas = nn.parallel.DistributedDataParallel(
                _Losses(model, objective), broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True,
                find_unused_parameters=True,  # as in routed experts, of which some are chosen by no token
            )

    def __call__(self, batch: Batch, state: State) -> Result:
        self.ranks.mark("forward and backward")
        result: Result = self.replicas(batch, state)
        return result

    def own_rows(self, batch: Batch) -> Batch:
        size = len(batch.inputs) // self.parts
        batch = batch._replace(targets_per_token=targets_per_token(batch))  # of the whole batch, as its targets are
        return rows(batch, self.ranks.rank * size, (self.ranks.rank + 1) * size)

    def gradients_of(self, index: int, count: int) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if index == count - 1 else self.replicas.no_sync()


def make_forward(model: nn.Module, objective: Objective, recipe: Recipe, ranks: Ranks) -> Forward:
    """For the processes that a run has."""
    forward_model = compiled(model, recipe.train.compile)
    if ranks.size == 1:
        return Forward(forward_model, objective)
    sizes = sizes_of(recipe.parallel, ranks.size)
    return ReplicatedForward(forward_model, objective, ranks, sizes.batches)


def compiled(model: nn.Module, wanted: bool) -> Any:
    """The model, compiled when ``wanted``."""
    return torch.compile(model) if wanted else model


def detached(tree: Any) -> Any:
    """A pytree with its tensors detached."""
    from torch.utils import _pytree as pytree

    return pytree.tree_map_only(Tensor, torch.Tensor.detach, tree)


def memory_in_use(device: torch.device) -> int:
    """Most bytes that tensors took on a GPU so far; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
