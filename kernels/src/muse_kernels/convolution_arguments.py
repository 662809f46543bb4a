"""What the short convolutions are given, checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Heads(NamedTuple):
    """How the channels C = H (2K + M) divide: H queries of width K, H keys of width K, H values of width M."""

    heads: int
    key_width: int
    value_width: int

    @property
    def channels(self) -> int:
        return self.heads * (2 * self.key_width + self.value_width)


def check_short_convolution(
    x: Tensor, taps: Tensor, heads: int, key_width: int, initial: Tensor | None, resets: Tensor | None
) -> Heads:
    """How the channels divide; ValueError naming the argument and the shapes where they do not fit."""
    check_convolution("short_convolution", x, taps, initial, resets)
    values = x.shape[2] - 2 * heads * key_width
    if heads < 1 or key_width < 1 or values < heads or values % heads:
        raise ValueError(
            f"short_convolution: x {tuple(x.shape)} does not hold {heads} heads of 2 x {key_width} channels for "
            "queries and keys and as many for values each"
        )
    return Heads(heads, key_width, values // heads)


def check_convolution(
    operation: str, x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None
) -> None:
    """ValueError naming the argument and the shapes where they do not fit."""
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"{operation}: x must be floating (B, N, C), got {x.dtype} {tuple(x.shape)}")
    batch, tokens, channels = x.shape
    if tokens == 0:
        raise ValueError(f"{operation}: x must have a token at least, got (B, N, C) = {tuple(x.shape)}")
    if taps.ndim != 2 or taps.shape[0] < 1 or taps.shape[1] != channels:
        raise ValueError(f"{operation}: taps must be (S, {channels}) beside x, got {tuple(taps.shape)}")
    before = (batch, taps.shape[0] - 1, channels)
    if initial is not None and tuple(initial.shape) != before:
        raise ValueError(f"{operation}: initial must be {before}, got {tuple(initial.shape)}")
    if resets is not None and (tuple(resets.shape) != (batch, tokens) or resets.dtype != torch.bool):
        raise ValueError(
            f"{operation}: resets must be bool {(batch, tokens)}, got {resets.dtype} {tuple(resets.shape)}"
        )
