"""The short causal convolution in front of the fast weights: its taps and what it carries.

Shapes: B batch, N tokens, C channels, S span of the convolution in tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens


class CausalConvolution(nn.Module):
    """Queries, keys and values from y_t = SiLU(Σ_{lag < S} tap_lag ⊙ x_{t−lag}), over tokens of the same document.

    The state is the last S − 1 inputs (B, S − 1, C), zeroed before the latest document start. Taps are one vector per
    lag, so that optimisers treat them as the per-channel gains they are and not as a matrix.
    """

    def __init__(self, channels: int, span: int, generator: torch.Generator, kernel: Callable[..., tuple[Tensor, ...]]):
        """``kernel`` is the bound operation ``short_convolution``."""
        super().__init__()
        self.span = span
        self.kernel = kernel
        # The present token passes unchanged and the earlier ones start small but alive.
        self.taps = nn.ParameterList(
            torch.empty(channels).normal_(mean=float(lag == 0), std=0.1, generator=generator) for lag in range(span)
        )

    def forward(
        self, x: Tensor, heads: int, key_width: int, state: Tensor | None, tokens: Tokens
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """x (B, N, C) → query, key (B, N, H, K) of length 1 and value (B, N, H, M), and the state, at least fp32."""
        taps = torch.stack(list(self.taps))
        parts = self.kernel(x, taps, heads, key_width, initial=state, resets=tokens.resets)
        if state is None:
            state = x.new_zeros(x.shape[0], self.span - 1, x.shape[2])
        return parts, carried(state, x, tokens)


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
