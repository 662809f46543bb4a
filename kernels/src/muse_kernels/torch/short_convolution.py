"""Short convolutions by plain torch operations.

Shapes: B batch, N tokens, C channels, S span of the convolution in tokens.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import documents, unit_length
from ..signatures import causal_of, convolution_of


@convolution_of
def short_convolution(
    x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments, results and errors as `muse_kernels.short_convolution`."""
    return of_documents(x, taps, initial, documents(resets), heads, key_width)


@causal_of
def causal_convolution(x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None) -> Tensor:
    """Arguments, results and errors as `muse_kernels.causal_convolution`."""
    return sum_of_documents(x, taps, initial, documents(resets))


def of_documents(
    x: Tensor, taps: Tensor, initial: Tensor | None, document: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `short_convolution`, of the number of each token's document (B, N) instead of the resets."""
    convolved = F.silu(sum_of_documents(x, taps, initial, document))
    both, value = convolved.split((2 * heads * key_width, x.shape[2] - 2 * heads * key_width), dim=-1)
    query, key = unit_length(both.unflatten(-1, (2 * heads, -1))).chunk(2, dim=-2)
    return query, key, value.unflatten(-1, (heads, -1))


def sum_of_documents(x: Tensor, taps: Tensor, initial: Tensor | None, document: Tensor | None) -> Tensor:
    """As `causal_convolution`, of the number of each token's document (B, N) instead of the resets."""
    memory = len(taps) - 1
    if initial is None:
        initial = x.new_zeros(x.shape[0], memory, x.shape[2])
    if document is not None:
        document = F.pad(document, (memory, 0))
    padded = torch.cat((initial.to(x.dtype), x), dim=1)
    total: Tensor = _ShiftedSum.apply(padded, taps.to(x.dtype), document)
    return total


class _ShiftedSum(torch.autograd.Function):
    """The convolution of padded (B, S - 1 + N, C) with taps (S, C). By hand because autograd would fill and add one
    full-size gradient per lag: 31 ms instead of 48 forward and backward at (8, 256, 576), S = 4, with document starts,
    on one core. Stands in `muse_core.model.convolution` as well, see docs/decisions/convolutions-twice.md."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, taps: Tensor, document: Tensor | None) -> Tensor:
        ctx.save_for_backward(padded, taps, document)
        span = len(taps)
        output = _shifted(padded, span, 0) * taps[0]
        for lag in range(1, span):
            # Not in place: torch 2.11 compiles a forward pass in place to one whose gradient is lost.
            output = torch.addcmul(output, _within(_shifted(padded, span, lag), document, span, lag), taps[lag])
        return output

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
    """(B, N, …): the inputs ``lag`` tokens before each token."""
    return padded[:, span - 1 - lag : padded.shape[1] - lag]


def _within(x: Tensor, document: Tensor | None, span: int, lag: int) -> Tensor:
    """x (B, N, C), zero where the token ``lag`` before belongs to another document."""
    if document is None or lag == 0:
        return x
    return x.masked_fill((_shifted(document, span, lag) != _shifted(document, span, 0))[..., None], 0.0)
