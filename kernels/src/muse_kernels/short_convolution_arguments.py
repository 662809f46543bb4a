"""What the short convolution accepts, and how its channels and tokens divide."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SHORTEST = 1e-6
"""Length below which a query or key is divided by this instead of its length."""


class Heads(NamedTuple):
    """How the channels C = H (2K + M) divide: H queries of width K, H keys of width K, H values of width M."""

    heads: int
    key_width: int
    value_width: int

    @property
    def channels(self) -> int:
        return self.heads * (2 * self.key_width + self.value_width)


def unit_length(x: Tensor) -> Tensor:
    """x (..., K) over its length along the last axis, or over `SHORTEST` where it is shorter; in the dtype of x.

    Plain torch, whatever backend is bound. Computed in float32 at least: a square overflows in float16 and loses bits
    in bfloat16.
    """
    computed = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.normalize(computed, dim=-1, eps=SHORTEST).to(x.dtype)


def check_short_convolution(
    x: Tensor, taps: Tensor, heads: int, key_width: int, initial: Tensor | None, resets: Tensor | None
) -> Heads:
    """How the channels divide; ValueError naming the argument and the shapes where they do not fit."""
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"short_convolution: x must be floating (B, N, C), got {x.dtype} {tuple(x.shape)}")
    batch, tokens, channels = x.shape
    if tokens == 0:
        raise ValueError(f"short_convolution: x must have a token at least, got (B, N, C) = {tuple(x.shape)}")
    values = channels - 2 * heads * key_width
    if heads < 1 or key_width < 1 or values < heads or values % heads:
        raise ValueError(
            f"short_convolution: x {tuple(x.shape)} does not hold {heads} heads of 2 x {key_width} channels for "
            "queries and keys and as many for values each"
        )
    if taps.ndim != 2 or taps.shape[0] < 1 or taps.shape[1] != channels:
        raise ValueError(f"short_convolution: taps must be (S, {channels}) beside x, got {tuple(taps.shape)}")
    before = (batch, taps.shape[0] - 1, channels)
    if initial is not None and tuple(initial.shape) != before:
        raise ValueError(f"short_convolution: initial must be {before}, got {tuple(initial.shape)}")
    if resets is not None and (tuple(resets.shape) != (batch, tokens) or resets.dtype != torch.bool):
        raise ValueError(
            f"short_convolution: resets must be bool {(batch, tokens)}, got {resets.dtype} {tuple(resets.shape)}"
        )
    return Heads(heads, key_width, values // heads)


def documents(resets: Tensor | None) -> Tensor | None:
    """(B, N) int32: which document a token belongs to, counted from the carried one (0)."""
    return None if resets is None else resets.cumsum(1, dtype=torch.int32)
