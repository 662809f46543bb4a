"""Short causal convolutions along the tokens of a document: their taps and what they carry.

Shapes: B batch, N tokens, C channels, S span of the convolution in tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens

Taps = Literal["identity", "small", "uniform"]
"""First taps. identity: the present token passes unchanged, with noise of standard deviation 0.1 on every lag. small:
that noise alone, for what is added to its input. uniform: between −1/√S and 1/√S, as torch's own convolutions start."""


def first_taps(channels: int, span: int, generator: torch.Generator, taps: Taps = "identity") -> nn.ParameterList:
    """One vector (C,) per lag, so that optimisers treat taps as the per-channel gains they are and not as a matrix."""
    if taps == "uniform":
        bound = span**-0.5
        return nn.ParameterList(
            torch.empty(channels).uniform_(-bound, bound, generator=generator) for _ in range(span)
        )
    return nn.ParameterList(
        torch.empty(channels).normal_(mean=float(taps == "identity" and lag == 0), std=0.1, generator=generator)
        for lag in range(span)
    )


class CausalConvolution(nn.Module):
    """Queries, keys and values from y_t = SiLU(Σ_{lag < S} tap_lag ⊙ x_{t−lag}), over tokens of the same document.

    The state is the last S − 1 inputs (B, S − 1, C), zeroed before the latest document start.
    """

    def __init__(
        self,
        channels: int,
        span: int,
        generator: torch.Generator,
        kernel: Callable[..., tuple[Tensor, ...]],
        taps: Taps = "identity",
    ):
        """``kernel`` is the bound operation ``short_convolution``."""
        super().__init__()
        self.span = span
        self.kernel = kernel
        self.taps = first_taps(channels, span, generator, taps)

    def forward(
        self, x: Tensor, heads: int, key_width: int, state: Tensor | None, tokens: Tokens
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """x (B, N, C) → query, key (B, N, H, K) of length 1 and value (B, N, H, M), and the state, at least fp32."""
        taps = torch.stack(list(self.taps))
        parts = self.kernel(x, taps, heads, key_width, initial=state, resets=tokens.resets)
        if state is None:
            state = x.new_zeros(x.shape[0], self.span - 1, x.shape[2])
        return parts, carried(state, x, tokens)


class PlainConvolution(nn.Module):
    """y_t = Σ_{lag < S} tap_lag ⊙ x_{t−lag} (+ bias), over tokens of the same document; nothing is normalised."""

    def __init__(
        self,
        channels: int,
        span: int,
        generator: torch.Generator,
        bind: Callable[..., Any],
        taps: Taps = "identity",
        bias: bool = False,
    ):
        """``bind`` is ``context.kernels.bind``: a backend's ``causal_convolution`` computes, or the function below."""
        super().__init__()
        self.span = span
        self.kernel = bind(
            "causal_convolution", sizes={"span": span}, needs=("gradient", "resets"),
            otherwise="muse_core.model.convolution:causal_convolution",
        )  # fmt: skip
        self.taps = first_taps(channels, span, generator, taps)
        self.bias = None
        if bias:
            bound = span**-0.5 if taps == "uniform" else 0.0
            self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor, state: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """x (B, N, C) → y (B, N, C) in x's dtype, and the state: the last S − 1 inputs, at least fp32."""
        total = self.kernel(x, torch.stack(list(self.taps)), initial=state, resets=tokens.resets).to(x.dtype)
        if self.bias is not None:
            total = total + self.bias.to(x.dtype)
        if state is None:
            state = x.new_zeros(x.shape[0], self.span - 1, x.shape[2])
        return total, carried(state, x, tokens)


def causal_convolution(
    x: Tensor, taps: Tensor, *, initial: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    """As ``muse_kernels.causal_convolution``, by torch operations."""
    memory = len(taps) - 1
    before = x.new_zeros(x.shape[0], memory, x.shape[2]) if initial is None else initial.to(x.dtype)
    # Carried inputs belong to the document that goes on: those of an earlier one were zeroed.
    document = None if resets is None else nn.functional.pad(resets.cumsum(1), (memory, 0))
    total: Tensor = _ShiftedSum.apply(torch.cat((before, x), dim=1), taps.to(x.dtype), document)
    return total


class _ShiftedSum(torch.autograd.Function):
    """Σ_{lag < S} tap_lag ⊙ x_{t−lag} of padded (B, S − 1 + N, C) and taps (S, C), within a document (B, S − 1 + N).

    By hand, because autograd keeps a masked copy of x for every lag, and fills and adds a gradient of full size for
    each: with document starts 20 passes over x a lag, here 14, and nothing but ``padded`` is kept.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, taps: Tensor, document: Tensor | None) -> Tensor:
        ctx.save_for_backward(padded, taps, document)
        span = len(taps)
        total = _shifted(padded, span, 0) * taps[0]
        for lag in range(1, span):
            # Not in place: torch 2.11 compiles a forward pass in place to one whose gradient is lost.
            total = torch.addcmul(total, _within(_shifted(padded, span, lag), document, span, lag), taps[lag])
        return total

    @staticmethod
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
    """(B, N, …): what stands ``lag`` tokens before each token."""
    return padded[:, span - 1 - lag : padded.shape[1] - lag]


def _within(x: Tensor, document: Tensor | None, span: int, lag: int) -> Tensor:
    """x (B, N, C), zero where the token ``lag`` before belongs to another document."""
    if document is None or lag == 0:
        return x
    return x.masked_fill((_shifted(document, span, lag) != _shifted(document, span, 0))[..., None], 0.0)


def carried(before: Tensor, x: Tensor, tokens: Tokens) -> Tensor:
    """The last S − 1 inputs up to each row's last valid token, zeroed before its latest document, from those before
    x (B, N, C) and x itself."""
    memory, resets = before.shape[1], tokens.resets
    if tokens.valid is None:
        # Of a long x no more than is kept is read.
        recent = x.shape[1] - min(memory, x.shape[1])
        x, resets = x[:, recent:], None if resets is None else resets[:, recent:]
    padded = torch.cat((before.to(x.dtype), x), dim=1)
    document = None if resets is None else nn.functional.pad(resets.cumsum(1), (memory, 0))
    if tokens.valid is None:
        kept = padded[:, padded.shape[1] - memory :]
        document = None if document is None else document[:, document.shape[1] - memory :]
    else:
        index = tokens.valid.sum(1, keepdim=True) + torch.arange(memory, device=x.device)
        kept = padded.gather(1, index[..., None].expand(-1, -1, padded.shape[-1]))
        document = None if document is None else document.gather(1, index)
    if document is not None:
        other = document != document[:, -1:]
        kept = kept.masked_fill(other[..., None], 0.0)
    # A view would keep all inputs in memory.
    return kept.to(torch.promote_types(kept.dtype, torch.float32), copy=True)
