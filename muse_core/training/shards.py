"""Weights, gradients and moments of which each process holds rows: torch's FSDP2 keeps them as DTensors.

The functions here give the whole, the part of this process, or a part of a whole, and pass other tensors through. None
imports torch's distributed parts where nothing is divided.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.errors import RecipeError


def is_divided(tensor: Tensor) -> bool:
    """Whether each process holds a part of it."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """The part of this process; shares memory."""
    return tensor.to_local() if is_divided(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process: a collective where it is divided."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


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


def load_whole(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Weights and buffers by name from tensors that every process has whole; names, shapes and types fit."""
    own = model.state_dict()
    if not any(is_divided(value) for value in own.values()):
        model.load_state_dict(dict(tensors))
        return
    model.load_state_dict({name: divided_as(value, own[name]) for name, value in tensors.items()})


def divide(
    model: nn.Module, shard: int, copies: int, device: torch.device, *, compile: bool, data_dependent: bool
) -> Any:
    """Divide the weights among ``shard`` processes in place, one unit of all-gathering for each member of a list of
    blocks and one for the rest, and return the model. ``copies`` such groups of processes have gradients in common.

    ``data_dependent``: some weights may be used on one rank and not on another. Raises RecipeError where this torch
    cannot divide such a model, and for a weight without an axis.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise RecipeError(
            f"parallel.shard: {scalars[0]} has no axis to be divided along - make it a tensor of one element, or set "
            "parallel.shard = 1"
        )
    if data_dependent and not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise RecipeError(
            "parallel.shard: this torch cannot divide a model whose routers leave weights unused on some ranks - use "
            "torch 2.13 or later, or set parallel.shard = 1"
        )
    # Blocks and losses add out of place, which is what this warning is about.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    sizes, names = ((copies, shard), ("data", "shard")) if copies > 1 else ((shard,), ("shard",))
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    blocks = [block for part in model.children() if isinstance(part, nn.ModuleList) for block in part]
    for block in blocks:
        if compile:
            block.compile()
        fully_shard(block, mesh=mesh)
    divided: Any = fully_shard(model, mesh=mesh)
    if data_dependent:
        divided.set_reduce_scatter_unused_params(True)
    return divided
