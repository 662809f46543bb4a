"""A second write a token, behind the first: products of two Householder maps under the delta rule.

Shapes: B batch, N tokens, D width, H heads, K key width, M value width, S span of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import State, Tokens
from muse_core.fast_weights import Writes
from muse_core.model.convolution import PlainConvolution, Taps
from muse_core.model.projections import joined
from muse_kernels import unit_length


class Written(NamedTuple):
    """What a second write is made of."""

    key: Tensor
    """(B, N, H, K), of length 1."""
    value: Tensor
    """(B, N, H, M)."""
    rate: Tensor
    """(B, N, H): β."""


class SecondWrite(nn.Module):
    """Key and value of a projection of the token, with a short convolution and SiLU as those of the first write, and a
    rate of its own. State: the convolution's last S − 1 inputs (B, S − 1, H (K + M)). Source: Siems and others 2025,
    arXiv:2502.10297."""

    def __init__(
        self,
        key: nn.Linear,
        value: nn.Linear,
        rate: nn.Module,
        heads: int,
        span: int,
        taps: Taps,
        generator: torch.Generator,
        bind: Callable[..., Any],
    ):
        """``rate``: x (B, N, D) → β (B, N, H). ``bind`` is ``context.kernels.bind``."""
        super().__init__()
        self.key, self.value, self.dynamics, self.heads = key, value, rate, heads
        channels = key.out_features + value.out_features
        self.convolution = PlainConvolution(channels, span, generator, bind, taps) if span else None

    def forward(self, x: Tensor, low: Tensor, state: State, tokens: Tokens) -> tuple[Written, State]:
        """``low``: x in the precision of matrix products."""
        both = joined(low, (self.key, self.value))
        if self.convolution is not None:
            both, state = self.convolution(both, state, tokens)
            both = F.silu(both)
        key, value = both.split((self.key.out_features, self.value.out_features), dim=-1)
        key, value = key.unflatten(-1, (self.heads, -1)), value.unflatten(-1, (self.heads, -1))
        return Written(unit_length(key), value, self.dynamics(x)), state


def interleaved(first: Writes, second: Written, tokens: Tokens) -> tuple[Writes, Tokens]:
    """Both writes of each token one after the other, as 2 N tokens of which the first forgets; what the second reads is
    what the token reads."""

    def pair(one: Tensor, other: Tensor) -> Tensor:
        return torch.stack((one, other.to(one.dtype)), 2).flatten(1, 2)

    writes = Writes(
        pair(first.query, first.query),
        pair(first.key, second.key),
        pair(first.value, second.value),
        pair(first.log_decay, torch.zeros_like(first.log_decay)),
        pair(first.rate, second.rate),
    )
    resets, valid = tokens.resets, tokens.valid
    twice = Tokens(
        tokens.positions.repeat_interleave(2, 1),
        2 * tokens.offset,
        None if resets is None else pair(resets, torch.zeros_like(resets)),
        None if valid is None else pair(valid, valid),
    )
    return writes, twice
