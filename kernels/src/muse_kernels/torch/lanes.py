"""Sequences laid out as many short lanes, so that a serial loop works on wide vectors.

A row of N sites becomes C chunks of T sites; step t of the loop handles site t of every chunk of every row at once.
"""

from math import isqrt

import torch
from torch import Tensor

# Wide enough that a vector operation outweighs its launch; more chunks only lengthen the serial carry between them.
_LANES = 16_384


def chunk_length(rows: int, sites: int) -> int:
    """T: one chunk where the rows alone fill the lanes, about √N sites where they are few."""
    chunks = max(1, min(isqrt(sites), _LANES // max(rows, 1)))
    return -(-sites // chunks)


def to_lanes(x: Tensor, length: int, padding: float) -> Tensor:
    """(R, N, ...) of any strides -> contiguous (T, R, C, ...), the last chunk filled up with `padding`."""
    rows, sites, rest = x.shape[0], x.shape[1], x.shape[2:]
    chunks = -(-sites // length)
    lanes = x.new_empty((length, rows, chunks, *rest))
    whole = sites // length
    lanes[:, :, :whole] = x[:, : whole * length].unflatten(1, (whole, length)).movedim(2, 0)
    if whole < chunks:
        left = sites - whole * length
        lanes[:left, :, whole] = x[:, whole * length :].movedim(1, 0)
        lanes[left:, :, whole] = padding
    return lanes


def from_lanes(lanes: Tensor, sites: int) -> Tensor:
    """The inverse of `to_lanes`: contiguous (R, N, ...)."""
    length, rows, chunks, *rest = lanes.shape
    x = lanes.new_empty((rows, sites, *rest))
    whole = sites // length
    x[:, : whole * length].unflatten(1, (whole, length)).movedim(2, 0).copy_(lanes[:, :, :whole])
    if whole < chunks:
        x[:, whole * length :] = lanes[: sites - whole * length, :, whole].movedim(0, 1)
    return x


def power_of_two(*parts: Tensor) -> Tensor:
    """2^-e (R, C) with e the exponent of the largest component of complex parts (2, R, C): exact to multiply by."""
    largest = torch.stack([torch.view_as_real(x).abs().amax((0, -1)) for x in parts]).amax(0)
    limit = 126 if largest.dtype == torch.float32 else 1022
    return torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent.clamp(-limit, limit))
