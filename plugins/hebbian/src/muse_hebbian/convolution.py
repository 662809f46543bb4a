"""A short causal convolution, channel by channel, that never reaches into the previous document.

Shapes: B batch, N tokens, C channels, S span of the convolution in tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from muse_core.contracts import Tokens


class CausalConvolution(nn.Module):
    """y_t = Σ_{lag < S} tap_lag ⊙ x_{t−lag}, over tokens of the same document.

    The state is the last S − 1 inputs (B, S − 1, C), zeroed before the latest document start. Taps are one vector per
    lag, so that optimisers treat them as the per-channel gains they are and not as a matrix.
    """

    def __init__(self, channels: int, span: int, generator: torch.Generator):
        super().__init__()
        self.span = span
        # The present token passes unchanged and the earlier ones start small but alive.
        self.taps = nn.ParameterList(
            torch.empty(channels).normal_(mean=float(lag == 0), std=0.1, generator=generator) for lag in range(span)
        )

    def forward(self, x: Tensor, state: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """x (B, N, C) → the same shape and dtype, and the state for what follows, at least fp32."""
        memory = self.span - 1
        if state is None:
            state = x.new_zeros(x.shape[0], memory, x.shape[2])
        padded = torch.cat((state.to(x.dtype), x), dim=1)
        document = _documents(tokens, memory)
        taps = torch.stack(list(self.taps)).to(x.dtype)
        return _ShiftedSum.apply(padded, taps, document), _last(padded, document, tokens.valid, memory)


class _ShiftedSum(torch.autograd.Function):
    """The convolution of padded (B, S − 1 + N, C) with taps (S, C). By hand because autograd would fill and add one
    full-size gradient per lag: 31 ms instead of 48 forward and backward at (8, 256, 576), S = 4, with document starts,
    on one core."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, taps: Tensor, document: Tensor | None) -> Tensor:
        ctx.save_for_backward(padded, taps, document)
        span = len(taps)
        output = _shifted(padded, span, 0) * taps[0]
        for lag in range(1, span):
            output.addcmul_(_within(_shifted(padded, span, lag), document, span, lag), taps[lag])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        padded, taps, document = ctx.saved_tensors
        span = len(taps)
        to_padded, to_taps = torch.zeros_like(padded), []
        for lag in range(span):
            kept = _within(gradient, document, span, lag)
            _shifted(to_padded, span, lag).addcmul_(kept, taps[lag])
            to_taps.append((kept * _shifted(padded, span, lag)).sum((0, 1)))
        return to_padded, torch.stack(to_taps), None


def _shifted(padded: Tensor, span: int, lag: int) -> Tensor:
    """(B, N, …): the inputs ``lag`` tokens before each token."""
    return padded[:, span - 1 - lag : padded.shape[1] - lag]


def _within(x: Tensor, document: Tensor | None, span: int, lag: int) -> Tensor:
    """x (B, N, C), zero where the token ``lag`` before belongs to another document."""
    if document is None or lag == 0:
        return x
    other = _shifted(document, span, lag) != _shifted(document, span, 0)
    return x.masked_fill(other[..., None], 0.0)


def _documents(tokens: Tokens, memory: int) -> Tensor | None:
    """(B, S − 1 + N): which document an input belongs to, counted from the carried ones' (0)."""
    if tokens.resets is None:
        return None
    return nn.functional.pad(tokens.resets.cumsum(1), (memory, 0))


def _last(padded: Tensor, document: Tensor | None, valid: Tensor | None, memory: int) -> Tensor:
    """The last S − 1 inputs up to each row's last valid token, zeroed before its latest document."""
    if valid is None:
        kept = padded[:, padded.shape[1] - memory :]
        document = None if document is None else document[:, document.shape[1] - memory :]
    else:
        index = valid.sum(1, keepdim=True) + torch.arange(memory, device=padded.device)
        kept = padded.gather(1, index[..., None].expand(-1, -1, padded.shape[-1]))
        document = None if document is None else document.gather(1, index)
    if document is not None:
        other = document != document[:, -1:]
        kept = kept.masked_fill(other[..., None], 0.0)
    # A view would keep all N inputs in memory.
    return kept.to(torch.promote_types(kept.dtype, torch.float32), copy=True)
