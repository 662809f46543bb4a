"""How the launches of every operation hand tensors to a kernel, and how many programs a launch may have."""

import functools

import torch
import triton
from torch import Tensor

MOST_OF_AN_AXIS = 65_535
"""Programs of a launch grid's axes behind the first."""


def floats(x: Tensor) -> Tensor:
    """A view of a tensor as float32, complex numbers as pairs."""
    x = x.resolve_conj().resolve_neg()
    return torch.view_as_real(x) if x.is_complex() else x


def unit_last_stride(x: Tensor) -> Tensor:
    """x, copied where neighbours along the last axis are not neighbours in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program on this GPU may have; 0 on another device."""
    if device.type != "cuda":
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
