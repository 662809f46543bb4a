"""Sequences laid out as many short chunks side by side, so that a serial loop works on wide vectors.

A row of N sites becomes C chunks of T sites; step t of the loop handles site t of every chunk of every row at once.
"""

from math import isqrt

import torch
from torch import Tensor

# Wide enough that a vector operation outweighs its launch; more chunks only lengthen the serial carry between them.
_WIDE_ENOUGH = 16_384


def chunk_length(rows: int, sites: int) -> int:
    """T: one chunk where the rows alone fill the vectors, about √N sites where they are few."""
    chunks = max(1, min(isqrt(sites), _WIDE_ENOUGH // max(rows, 1)))
    return -(-sites // chunks)


def to_chunks(x: Tensor, length: int, padding: float) -> Tensor:
    """(R, N, ...) of any strides -> contiguous (T, R, C, ...), the last chunk filled up with `padding`."""
    rows, sites, rest = x.shape[0], x.shape[1], x.shape[2:]
    chunks = -(-sites // length)
    chunked = x.new_empty((length, rows, chunks, *rest))
    whole = sites // length
    chunked[:, :, :whole] = x[:, : whole * length].unflatten(1, (whole, length)).movedim(2, 0)
    if whole < chunks:
        left = sites - whole * length
        chunked[:left, :, whole] = x[:, whole * length :].movedim(1, 0)
        chunked[left:, :, whole] = padding
    return chunked


def from_chunks(chunked: Tensor, sites: int) -> Tensor:
    """The inverse of `to_chunks`: contiguous (R, N, ...)."""
    length, rows, chunks, *rest = chunked.shape
    x = chunked.new_empty((rows, sites, *rest))
    whole = sites // length
    x[:, : whole * length].unflatten(1, (whole, length)).movedim(2, 0).copy_(chunked[:, :, :whole])
    if whole < chunks:
        x[:, whole * length :] = chunked[: sites - whole * length, :, whole].movedim(0, 1)
    return x


def power_of_two(*parts: Tensor) -> Tensor:
    """2^-e (R, C) with e the exponent of the largest component of complex parts (2, R, C): exact to multiply by."""
    largest = torch.stack([torch.view_as_real(x).abs().amax((0, -1)) for x in parts]).amax(0)
    limit = 126 if largest.dtype == torch.float32 else 1022
    return torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent.clamp(-limit, limit))
