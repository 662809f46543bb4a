"""Weights, gradients and moments of which each process holds rows: torch's FSDP2 keeps them as DTensors.

The functions here give the whole, the part of this process, or a part of a whole, and pass other tensors through. None
imports torch's distributed parts where nothing is divided.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.component import walk
from muse_core.errors import RecipeError
from muse_core.fault_injection import fault_point
from muse_core.parallel.sizes import sizes_of
from muse_core.recipe.schema import Recipe
from muse_core.storage.checkpoint.tensor_file import fingerprint
from muse_core.training.compilation import blocks_of

NAMED = "initial values must depend on the seed and on names alone"
"""What to do about ranks that begin with other weights."""


def is_divided(tensor: Tensor) -> bool:
    """Whether each process holds a part of it."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """The part of this process; shares memory."""
    return tensor.to_local() if is_divided(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process: a collective where it is divided."""
    if not is_divided(tensor):
        return tensor
    fault_point("gather", None)
    return tensor.full_tensor()


def divided_as(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of this process of a tensor that every process has, on the device of ``like`` and divided as it is; the
    tensor itself, copied, where ``like`` is not divided."""
    if not is_divided(like):
        return tensor.to(like.device, copy=True)
    from torch.distributed.tensor import DTensor

    there: Any = like
    shard = there.device_mesh["shard"]
    # FSDP2 divides along the first axis as torch.chunk does; a process beyond the last chunk has none of it.
    parts = tensor.chunk(shard.size())
    rank = shard.get_local_rank()
    own = parts[rank] if rank < len(parts) else tensor[:0]
    return DTensor.from_local(
        own.to(like.device, copy=True), there.device_mesh, there.placements, run_check=False, shape=tensor.shape,
        stride=there.stride(),
    )


def gathered(model: nn.Module, wanted: bool) -> dict[str, Tensor]:
    """Weights and buffers by name on the CPU, where ``wanted``. A collective where they are divided: every process
    gathers one after the other."""
    found = {}
    for name, value in model.state_dict().items():
        value = whole(value)
        if wanted:
            found[name] = value.detach().to("cpu")
    return found


@contextlib.contextmanager
def embeds(model: nn.Module) -> Iterator[None]:
    """Inside, what of the weights belongs to no block is whole on every process, so that ``model.embed`` may be called
    by itself. A collective where weights are divided."""
    there: Any = model
    if not any(map(is_divided, model.parameters())):
        yield
        return
    there.unshard()
    try:
        yield
    finally:
        there.reshard()


def load_whole(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Weights and buffers by name from tensors that every process has whole; names, shapes and types fit."""
    own = model.state_dict()
    if not any(is_divided(value) for value in own.values()):
        model.load_state_dict(dict(tensors))
        return
    model.load_state_dict({name: divided_as(value, own[name]) for name, value in tensors.items()})


class Divider:
    """Divides the weights of a model among the ``shards`` processes of a copy, in place: one unit of all-gathering for
    each member of a list of blocks and one for the rest.

    A model that tells of each block when it is built (``ModelContext.built``) is divided block by block, and no process
    holds more of it whole than one. FSDP2 moves what it divides to the device. Raises RecipeError where this torch
    cannot divide such a model.
    """

    def __init__(self, recipe: Recipe, ranks: Any, device: torch.device):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule

        sizes = sizes_of(recipe.parallel, ranks.size)
        self.ranks, self.shards = ranks, sizes.shard
        # Some weights may be used on one rank and not on another.
        self.data_dependent = any(use.kind == "router" for use in walk(recipe.model.options))
        if self.data_dependent and not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
            raise RecipeError(
                "parallel.shard: this torch cannot divide a model whose routers leave weights unused on some ranks - "
                "use torch 2.13 or later, or set parallel.shard = 1"
            )
        # Blocks and losses add out of place, which is what this warning is about.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
        axes = {"data": sizes.data, "shard": sizes.shard} if sizes.data > 1 else {"shard": sizes.shard}
        self.mesh = init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
        self.weights: dict[str, str] = {}
        """Fingerprint of each weight and buffer before it was divided."""

    def block(self, name: str, block: nn.Module) -> None:
        """Divide a block that stands under this name in its model. Raises RecipeError for a weight without an axis."""
        from torch.distributed.fsdp import fully_shard

        self._read(f"{name}.", block)
        fully_shard(block, mesh=self.mesh)

    def rest(self, model: nn.Module) -> Any:
        """Divide what is whole of a model, and return it. Raises RecipeError as ``block``, and where a rank began with
        other weights than rank 0."""
        from torch.distributed.fsdp import FSDPModule, fully_shard

        for name, block in blocks_of(model):
            if not isinstance(block, FSDPModule):
                self.block(name, block)
        self._read("", model)
        divided: Any = fully_shard(model, mesh=self.mesh)
        if self.data_dependent:
            divided.set_reduce_scatter_unused_params(True)
        self.ranks.agree("set of weights", self.weights, NAMED)
        return divided

    def _read(self, before: str, part: nn.Module) -> None:
        if scalars := [name for name, parameter in part.named_parameters() if parameter.ndim == 0]:
            raise RecipeError(
                f"parallel.shard: {before}{scalars[0]} has no axis to be divided along - make it a tensor of one "
                "element, or set parallel.shard = 1"
            )
        for name, value in part.state_dict().items():
            if not is_divided(value) and before + name not in self.weights:
                self.weights[before + name] = fingerprint(value).sha256
