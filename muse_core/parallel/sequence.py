"""The processes among which the tokens of a row are divided."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from muse_core.fault_injection import fault_point


class Sequence:
    """Process ``rank`` of ``size`` holds the ``rank``-th part of every row while it is ``divided``; evaluations, probes
    and checks read rows whole."""

    def __init__(self, group: Any):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.divided = False
        self._gathered: list[Tensor] = []

    @contextlib.contextmanager
    def division(self) -> Iterator[None]:
        """Operations inside, and their backward passes, are over the tokens of all processes."""
        before, self.divided = self.divided, True
        try:
            yield
        finally:
            self.divided = before

    def collect(self, value: Tensor) -> Tensor:
        """(size, …): the values of all, without gradients; ``value`` is real and contiguous."""
        return _of_all(value, self.group)

    def gather(self, value: Tensor) -> Tensor:
        """(size, …): the values of all, in the order of the tokens. ``value`` is real and contiguous; a result that
        every process uses must be ``tied`` to it."""
        gathered: Tensor = _Gather.apply(value, self.group)
        self._gathered.append(gathered)
        return gathered

    def tied(self, result: Tensor) -> Tensor:
        """The result, in whose backward pass those of all gathers since the last call take part. The first process
        needs nothing of what it gathers: without this its backward pass would leave out what the others wait for."""
        tables, self._gathered = self._gathered, []
        same: Tensor = _Tie.apply(result, *tables)
        return same


def _of_all(value: Tensor, group: Any) -> Tensor:
    fault_point("gather", None)
    found = value.new_empty(dist.get_world_size(group), *value.shape)
    # Into one tensor: over NCCL a list costs a copy more for every process. torch 2.13 has another name for it and
    # deprecates this one.
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    getattr(dist, name)(found.view(-1), value.reshape(-1), group=group)
    return found


class _Tie(torch.autograd.Function):
    """The first argument; the others get zero gradients."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, *tables: Tensor) -> Tensor:
        ctx.shapes = [(table.shape, table.dtype) for table in tables]
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        zeros = [torch.zeros(shape, dtype=dtype, device=gradient.device) for shape, dtype in ctx.shapes]
        return gradient, *zeros


class _Gather(torch.autograd.Function):
    """All-gather; its adjoint adds up what all processes have for the value of each."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _of_all(value, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total[dist.get_rank(ctx.group)], None
